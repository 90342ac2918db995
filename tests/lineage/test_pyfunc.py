"""Test that `mlflow.pyfunc.load_model` loads delivered levels and exported directories, without pickle."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness import load_network
from harness.lineage.browse.find import find_node
from harness.lineage.mlmodel import MLMODEL
from harness.lineage.nodes.local_files import file_names
from harness.lineage.proof.verify import verify
from harness.lineage.pyfunc import _load_pyfunc
from harness.lineage.sharing.export import export_run
from harness.lineage.store import LineageStore, open_store
from harness.lineage.tracking.registry import alias_of, model_name
from tests.free_port import free_port
from tests.lineage.shared_run import made_search, own_loop_level
from tests.tracking_server import server

IMAGES = np.random.default_rng(0).normal(size=(3, 1, 8, 8)).astype(np.float32)


@pytest.fixture(autouse=True)
def global_store() -> Iterator[None]:
    """Forget the global tracking URI after each test. MLflow also keeps it in the environment."""
    yield
    import mlflow

    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        os.environ.pop(name, None)


def use(uri: str) -> None:
    """Make a store the global one, as a user of `mlflow.pyfunc` does."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)


def model_files(store: LineageStore, run_id: str) -> Path:
    """Return the directory of a run's logged model in a SQLite store."""
    run = store.server.client().get_run(run_id)
    model = store.server.client().get_logged_model(run.outputs.model_outputs[0].model_id)
    return Path(model.artifact_location)


def check_predictions(uri: str, expected: np.ndarray) -> None:
    """Load a model by its URI, and compare the logits bit by bit."""
    import mlflow.pyfunc  # its import warns

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = mlflow.pyfunc.load_model(uri)
    logits = model.predict(IMAGES)
    assert logits.dtype == np.float32 and np.array_equal(logits, expected), uri
    flipped = IMAGES[:, :, ::-1]  # with a negative stride
    assert np.array_equal(model.predict(flipped), model.predict(np.ascontiguousarray(flipped))), uri
    assert "float32" in str(model.metadata.signature.inputs) and "(-1, 10)" in str(model.metadata.signature.outputs)


@pytest.mark.long
def test_levels_are_loaded_by_run_model_and_path(store: LineageStore, tmp_path: Path) -> None:
    # Phase: deliver a search and a final training
    made = made_search(store.local.directory, finals=("signed_mask",))
    run_ids = {name: store.deliver(made.directory(name)) for name in made.keys}
    with torch.no_grad():
        expected = {
            name: load_network(made.keys[name], local_dir=store.local.directory)(torch.from_numpy(IMAGES)).numpy()
            for name in ("L01", "signed_mask")
        }
    # Phase: load by run, by registered version and alias, and by logged model
    use(store.tracking_uri or "")
    node = find_node(store, made.keys["L01"])
    uris = [f"runs:/{run_ids['L01']}/network", f"models:/{model_name(node)}@{alias_of(node)}"]
    version = store.server.client().get_model_version_by_alias(model_name(node), alias_of(node)).version
    uris += [f"models:/{model_name(node)}/{version}", str(model_files(store, run_ids["L01"]))]
    for uri in uris:
        check_predictions(uri, expected["L01"])
    check_predictions(f"runs:/{run_ids['signed_mask']}/network", expected["signed_mask"])
    # Phase: an exported directory
    out = export_run(store, made.keys["L01"], tmp_path / "out").directory
    assert json.loads((out / "config.json").read_text())["run"]["run_ids"] == [run_ids["L01"]]
    check_predictions(str(out), expected["L01"])
    # Phase: local runs and records stay as they were, and `verify` finds nothing new
    assert MLMODEL not in file_names(made.directory("L01"))
    assert (model_files(store, run_ids["L01"]) / MLMODEL).is_file()
    assert not (model_files(store, run_ids["search"]) / MLMODEL).exists()
    assert not list(model_files(store, run_ids["L01"]).glob("*.pkl"))
    assert verify(store).problems == []
    shutil.rmtree(store.local.directory)
    fetched = store.find(made.keys["L01"])
    assert fetched is not None and MLMODEL not in file_names(fetched)


def test_other_input_is_refused_in_one_line(store: LineageStore, tmp_path: Path) -> None:
    import mlflow
    import pandas

    made = made_search(store.local.directory, levels=0)
    out = export_run(store, made.keys["L00"], tmp_path / "out").directory
    model = mlflow.pyfunc.load_model(str(out))
    for given in (IMAGES[:, :, :4], IMAGES.astype(np.int64), pandas.DataFrame({"a": [1.0]}), torch.from_numpy(IMAGES)):
        with pytest.raises(mlflow.exceptions.MlflowException):
            model.predict(given)
    # without the signature's check
    predict = model._model_impl.predict
    with pytest.raises(TypeError, match="predict takes a NumPy array of images"):
        predict([[1.0]])
    for image in (IMAGES[0], IMAGES.reshape(3, -1), np.array(["a"]), IMAGES.astype(complex), IMAGES.astype(object)):
        with pytest.raises(ValueError, match=r"^predict takes images as float32 \[N, channels, height, width\], not "):
            predict(image)
    assert predict(IMAGES[:0]).shape == (0, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trust_code": "false"}, "trust_code is 'false'; give True or False"),  # a text is true
        ({"trust_code": 1}, "trust_code is 1; give True or False"),
        ({"device": "gpu"}, "device 'gpu' cannot be used here: .*; give cpu or cuda"),
        ({"device": "meta"}, "device 'meta' cannot be used here"),
        ({"device": None}, "device 'None' cannot be used here"),
    ],
)
def test_an_odd_option_is_refused_in_one_line(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}[^\n]*$"):
        _load_pyfunc(str(tmp_path), options)


def test_altered_files_are_refused(store: LineageStore, tmp_path: Path) -> None:
    import mlflow

    made = made_search(store.local.directory, levels=0)
    store.deliver(made.directory("search"))
    place = model_files(store, store.deliver(made.directory("L00")))
    for name, message in (("checkpoint.safetensors", "was altered"), ("determinants.json", "was altered")):
        copy = tmp_path / name
        shutil.copytree(place, copy)
        (copy / name).write_bytes(b"{}")
        with pytest.raises(ValueError, match=message):
            mlflow.pyfunc.load_model(str(copy))
    # An MLmodel of a stranger cannot allow the execution of code, which the user's own option can.
    mlflow.pyfunc.load_model(str(place), model_config={"trust_code": True})
    for change in ({"trust_code": True}, {"trust_code": "no"}):
        content = json.loads((place / MLMODEL).read_text())
        content["flavors"]["python_function"]["config"] |= change
        (place / MLMODEL).write_text(json.dumps(content))
        with pytest.raises(ValueError, match="itself sets trust_code: it was altered"):
            mlflow.pyfunc.load_model(str(place))


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another loader": (
        lambda found: found["flavors"]["python_function"].update(loader_module="os"),
        "names the loader 'os' instead of harness.lineage.pyfunc",
    ),
    "code beside it": (
        lambda found: found["flavors"]["python_function"].update(code="code"),
        "has entries that the harness does not write",
    ),
    "another flavor": (lambda found: found["flavors"].update(sklearn={}), "has entries that the harness does not"),
    "trusts code": (
        lambda found: found["flavors"]["python_function"]["config"].update(trust_code=True),
        "trusts the code of the run",
    ),
    "another run": (lambda found: found["metadata"].update(key="0" * 64), "is that of another run"),
    "other form": (lambda found: found.clear(), "is not as the harness writes it"),
}


def test_verify_reports_an_altered_mlmodel(store: LineageStore) -> None:
    made = made_search(store.local.directory, levels=0)
    store.deliver(made.directory("search"))
    path = model_files(store, store.deliver(made.directory("L00"))) / MLMODEL
    original = path.read_bytes()
    for change, message in FAULTS.values():
        found = json.loads(original)
        change(found)
        path.write_text(json.dumps(found))
        (problem,) = verify(store, made.keys["L00"]).problems
        assert problem.check == "artifacts" and message in problem.what
    path.write_text("a: [1")
    assert "is not as the harness writes it" in verify(store, made.keys["L00"]).problems[0].what
    path.unlink()
    assert list(open_store(store.local.directory, store.tracking_uri, "test").sync()) == []
    assert path.read_bytes() == original and verify(store).problems == []


def test_sync_adds_the_file_to_runs_of_earlier_versions(
    store: LineageStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Phase: runs as earlier versions delivered them
    made = made_search(store.local.directory)
    run_ids = {name: store.deliver(made.directory(name)) for name in made.keys}
    written = {name: (model_files(store, run_ids[name]) / MLMODEL) for name in ("L00", "L01")}
    before = {name: path.read_bytes() for name, path in written.items()}
    for path in written.values():
        path.unlink()
    assert verify(store).problems == []  # such stores stay valid
    # Phase: with the local run, and without it
    shutil.rmtree(made.directory("L01"))
    assert list(open_store(store.local.directory, store.tracking_uri, "test").sync()) == []
    assert {name: path.read_bytes() for name, path in written.items()} == before
    assert caplog.text.count("it has no MLmodel") == 2
    caplog.clear()
    assert list(open_store(store.local.directory, store.tracking_uri, "test").sync()) == [] and not caplog.text


def test_a_level_of_an_own_loop_says_how_to_load_it(store: LineageStore) -> None:
    import mlflow

    key, _ = own_loop_level(store.local.directory)
    for directory in store.local.directories():
        store.deliver(directory)
    run_id = find_node(store, key).run_id
    place = model_files(store, str(run_id))
    assert "signature" not in json.loads((place / MLMODEL).read_text())
    with pytest.raises(ValueError, match="a SignPruner in a loop of its own.*load_checkpoint"):
        mlflow.pyfunc.load_model(str(place))


@pytest.mark.slow
def test_a_level_on_a_server_is_loaded(tmp_path: Path) -> None:
    # Phase: deliver to a server
    port = free_port()
    with server(tmp_path, port):
        uri = f"http://127.0.0.1:{port}"
        store = open_store(tmp_path / "runs", uri, "test")
        made = made_search(store.local.directory, levels=0)
        store.deliver(made.directory("search"))
        run_id = store.deliver(made.directory("L00"))
        with torch.no_grad():
            expected = load_network(made.keys["L00"], local_dir=store.local.directory)(torch.from_numpy(IMAGES)).numpy()
        # Phase: load by run and by registered version
        use(uri)
        node = find_node(store, made.keys["L00"])
        check_predictions(f"runs:/{run_id}/network", expected)
        check_predictions(f"models:/{model_name(node)}/1", expected)
