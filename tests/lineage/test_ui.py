"""Test runs as the MLflow UI shows them: views, columns, descriptions, artifacts and `tools/lineage.py ui`."""

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from mlflow import MlflowClient

from harness import load_checkpoint, load_signed_mask
from harness.checkpoint import Checkpoint
from harness.common.digest import sha256_json
from harness.lineage.browse.find import find_node
from harness.lineage.nodes.record import LineageRecord, Metric
from harness.lineage.proof import verify
from harness.lineage.store import LineageStore
from harness.lineage.tracking import ui
from harness.lineage.tracking.description import NOTE_TAG
from harness.lineage.tracking.ui import open_runs
from harness.lineage.tracking.view import VIEW_TAG
from tests.free_port import free_port
from tests.lineage.lineage_story import commit_story, key_of, network_files
from tests.lineage.lineage_tool import TOOL, ask

pytestmark = pytest.mark.long


def saved(store: LineageStore, address: str) -> dict[str, Any]:
    """Return the saved view in a URL, decoded as MLflow's UI does."""
    experiment, key = re.fullmatch(
        r"#/experiments/(\w+)/runs\?workflowType=machine_learning&viewStateShareKey=([\w-]+)", address
    ).groups()
    envelope = json.loads(MlflowClient(store.tracking_uri).get_experiment(experiment).tags[VIEW_TAG + key])
    # the UI of MLflow 3.17 requires these two fields
    assert isinstance(envelope["name"], str) and isinstance(envelope["createdAt"], int)
    return {"name": envelope["name"], **json.loads(envelope["state"])}


def test_an_experiment_opens_as_a_tree_with_the_columns_that_matter(store: LineageStore) -> None:
    store.deliver(commit_story(store.local)["lmc"])
    view = open_runs(store, "test")
    state = saved(store, view.address)
    assert (state["name"], state["searchFilter"], view.what) == ("Lineage", "", "all runs of test")
    # the UI shows nested runs as a tree only when they are sorted by start time
    assert (state["orderByKey"], state["orderByAsc"]) == ("attributes.start_time", True)
    words = ("test_error_percent", "density", "level", "barrier", "method", "kind_of_training", "init_seed", "sgd_seed")
    assert [re.search("`(.*)`", column)[1] for column in state["selectedColumns"]] == list(words)
    # the order that the table shows
    assert [re.search("`(.*)`", column)[1] for column in state["columnOrder"][1:4]] == list(words[:3])


def test_a_new_experiment_has_the_view_from_the_start(store: LineageStore) -> None:
    store.deliver(commit_story(store.local)["search"])
    tags = MlflowClient(store.tracking_uri).get_experiment_by_name("test").tags
    assert "Model training" in tags[NOTE_TAG]
    assert json.loads(tags[f"{VIEW_TAG}lineage"])["name"] == "Lineage"


def test_a_logged_model_says_whose_it_is_and_how_to_load_it(
    store: LineageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = commit_story(store.local)
    store.deliver(paths["lmc"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(store.tracking_uri))
    client = MlflowClient(store.tracking_uri)
    models = client.search_logged_models([client.get_experiment_by_name("test").experiment_id])
    notes = {model.source_run_id: model.tags[NOTE_TAG] for model in models}
    assert len(notes) == len(paths) - 1  # the comparison has no network
    for name in ("search", "level 1", "dense"):
        run_id = store.run_id_of(key_of(name))
        assert run_id is not None
        title, _, block = notes[run_id].partition("\n\n")
        assert title == f"**{store.load(run_id).name}**" and run_id in block
        code = block.removeprefix("```\n").removesuffix("\n```").replace("load_network", "load_checkpoint")
        loaded: dict[str, Any] = {}
        exec(code, loaded)
        if name == "search":
            assert loaded["theta_init"].digest == Checkpoint.load(paths[name] / "theta_init.safetensors").digest
        else:
            assert loaded["network"].digest == load_checkpoint(run_id).digest
            assert loaded["signed_mask"].signs.keys() == load_signed_mask(run_id).signs.keys()


def test_the_row_of_a_search_has_the_error_and_density_of_its_deepest_level(store: LineageStore) -> None:
    paths = commit_story(store.local)
    wanted = {"test_error_percent": 6.0, "density": pytest.approx(0.64)}
    assert find_node(store, key_of("search")).metrics == wanted  # local runs say the same
    store.deliver(paths["lmc"])
    run_id = store.run_id_of(key_of("search"))
    client = MlflowClient(store.tracking_uri)
    assert client.get_run(run_id).data.metrics == wanted
    errors = {point.step: point.value for point in client.get_metric_history(run_id, "test_error_percent")}
    assert errors == {0: 4.0, 1: 5.0, 2: 6.0}
    assert find_node(store, key_of("search")).metrics == wanted


DETERMINANTS = {
    "kind": "level",
    "format": 2,
    "level": 3,
    "parent": "a" * 64,
    "optim": {"lr": 0.1, "betas": [0, 1]},
}
LAYER_ROW = ["conv.weight", "8×4×3×3", 288, 147, 147 / 288, 0.123456789, None]


def commit_level(store: LineageStore) -> LineageRecord:
    """Commit a level with determinants, a constant of every sort, and a table of layers."""
    names = ("train_loss", "lr", "epochs_total", "exact_zeros_kept", "negative_norm_scales", "density")
    record = LineageRecord(
        sha256_json(DETERMINANTS),
        "level",
        "L03 d0.512 aws resnet20",
        config={"search": {"experiment": "test"}, "hardware": {"cpu": "x"}},
        tags={"method": "aws", "data": "digits", "level": "03", "density": "0.512346", "start_digest": "b" * 64},
        metrics=tuple(Metric(name, 0.5123456, step, 1000 + step) for name in names for step in range(2)),
        code={"commit": "c0ffee", "dirty": "false", "torch": "2.14.1", "machine": "x86_64"},
    )

    def write(directory: Path) -> None:
        network_files(3)(directory)
        (directory / "layers.json").write_text(json.dumps({"columns": list("abcdefg"), "data": [LAYER_ROW]}))

    return store.local.commit(record, write, DETERMINANTS)


def test_a_run_has_the_parameters_tags_and_metrics_that_are_read(store: LineageStore) -> None:
    record = commit_level(store)
    run_id = store.deliver(store.local.path(record))
    run = MlflowClient(store.tracking_uri).get_run(run_id)
    # the inputs of the key, without keys of other runs
    assert run.data.params == {"level": "3", "optim.lr": "0.1", "optim.betas": "[0, 1]"}
    ours = {name: value for name, value in run.data.tags.items() if not name.startswith(("harness.", "mlflow."))}
    assert ours == {
        "method": "aws",
        "data": "digits",
        "level": "03",
        "density": "0.512346",
        "code.commit": "c0ffee",
        "code.dirty": "false",
        "launch.hardware": "x, ? cores, ? GiB",
    }
    assert run.data.metrics.keys() == {"train_loss", "density"}
    assert run.data.metrics["density"] == 0.5123456  # metrics are exact
    with store.open_file(run_id, "record.json") as path:
        assert LineageRecord.from_json(path.read_bytes()) == record  # the rest is there
    assert "tags" not in {problem.check for problem in verify(store).problems}


def test_all_that_an_earlier_version_sent_is_still_compared(store: LineageStore) -> None:
    record = commit_level(store)
    run_id = store.deliver(store.local.path(record))
    client = MlflowClient(store.tracking_uri)
    client.set_tag(run_id, "start_digest", record.tags["start_digest"])
    client.log_metric(run_id, "epochs_total", 0.5123456)
    assert "tags" not in {problem.check for problem in verify(store).problems}
    client.set_tag(run_id, "start_digest", "c" * 64)
    client.log_metric(run_id, "epochs_total", 1.0, step=5)
    told = [problem.what for problem in verify(store).problems if problem.check == "tags"]
    assert len(told) == 2 and "start_digest" in told[0] and "epochs_total" in told[1]


def test_mask_and_layers_of_a_level_lie_side_by_side_and_numbers_are_rounded(store: LineageStore) -> None:
    record = commit_level(store)
    run_id = store.deliver(store.local.path(record))
    client = MlflowClient(store.tracking_uri)
    assert {file.path for file in client.list_artifacts(run_id)} == {"layers.json", "signed_mask.safetensors"}
    (row,) = json.loads(Path(client.download_artifacts(run_id, "layers.json")).read_text())["data"]
    assert row == ["conv.weight", "8×4×3×3", 288, 147, 0.5104, 0.1235, None]
    mask = Path(client.download_artifacts(run_id, "signed_mask.safetensors"))
    assert mask.read_bytes() == (store.local.path(record) / "signed_mask.safetensors").read_bytes()
    (version,) = client.search_model_versions(f"run_id = '{run_id}'")
    assert version.tags["density"] == "0.512" and f'load_signed_mask("{run_id}")' in version.description


def test_a_run_opens_its_search(store: LineageStore) -> None:
    store.deliver(commit_story(store.local)["lmc"])
    view = open_runs(store, "test", find_node(store, key_of("signed_mask")))
    state = saved(store, view.address)
    assert view.what == "the runs of aws resnet20 digits s1" and state["name"].endswith("aws resnet20 digits s1")
    found = store.summaries(state["searchFilter"])  # the UI uses the same search API
    assert {node.key for node in found} == {
        key_of(name) for name in ("search", "level 0", "level 1", "level 2", "signed_mask", "lmc")
    }


def test_a_large_experiment_opens_on_its_newest_search(store: LineageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.deliver(commit_story(store.local)["lmc"])
    monkeypatch.setattr(ui, "_MOST_AT_ONCE", 4)
    assert open_runs(store, "test").what == "the runs of aws resnet20 digits s1"


def test_an_unknown_experiment_and_an_undelivered_run_are_errors(store: LineageStore) -> None:
    paths = commit_story(store.local)
    store.deliver(paths["dense"])
    with pytest.raises(LookupError, match="no experiment 'none'"):
        open_runs(store, "none")
    with pytest.raises(LookupError, match="is not in MLflow yet: `python .*tools/lineage.py sync`"):
        open_runs(store, "test", find_node(store, key_of("level 1")))


def test_the_command_prints_the_link(
    tool: ModuleType,  # noqa: F811
    store: LineageStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_id = store.deliver(commit_story(store.local)["level 1"])
    ask(tool, store, monkeypatch, "ui", "--link", "--experiment", "test", "--port", "5001")
    address = capsys.readouterr().out.split()[-1]
    assert address.startswith("http://127.0.0.1:5001/#/experiments/")
    assert saved(store, address.removeprefix("http://127.0.0.1:5001/"))["searchFilter"] == ""
    ask(tool, store, monkeypatch, "ui", run_id[:12], "--json")
    told = json.loads(capsys.readouterr().out)
    assert key_of("search") in saved(store, told["link"].removeprefix("http://127.0.0.1:5000/"))["searchFilter"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SystemExit):
            ask(tool, store, monkeypatch, "ui", "--experiment", "test", "--port", str(taken.getsockname()[1]))
    assert "is in use" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.slow
def test_the_command_starts_the_ui_and_ends_it(store: LineageStore, tmp_path: Path) -> None:
    store.deliver(commit_story(store.local, levels=1)["level 0"])
    port = free_port()
    place = ["--experiment", "test", "--port", str(port), "--tracking-uri", str(store.tracking_uri)]
    command = [sys.executable, str(TOOL), "ui", *place]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    assert lines[0] == "all runs of test:\n" and f"http://127.0.0.1:{port}/#/experiments/" in lines[1]
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30).read()
    assert b"MLflow" in page
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
