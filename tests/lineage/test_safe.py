"""Test that reading an untrusted store is safe.

It runs no code and writes no file outside its directory.
"""

from __future__ import annotations

import ast
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from harness import load_checkpoint, load_signed_mask
from harness.common.digest import sha256_file
from harness.lineage.browse.find import find_node
from harness.lineage.bundle import write_bundle
from harness.lineage.store import LineageStore
from harness.lineage.tracking.server import download
from tests.lineage.lineage_story import commit_story, key_of

HARNESS = Path(__file__).parents[2] / "harness"


class Payload:
    """Create the file `mark` when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.mark,)


def files_of(store: LineageStore, run_id: str) -> Path:
    """Return the directory in which MLflow stores the files of a run."""
    client = store.server.client()
    model = client.get_run(run_id).outputs.model_outputs[0].model_id
    (found,) = store.local.directory.parent.rglob(f"{model}/artifacts")
    return found


def delivered(store: LineageStore) -> str:
    """Deliver a level, delete the local runs and return its run ID."""
    run_id = store.deliver(commit_story(store.local, levels=1)["level 0"])
    shutil.rmtree(store.local.directory)
    return run_id


def put(store: LineageStore, run_id: str, name: str, content: bytes) -> None:
    """Replace a stored file and set the digest tag that matches it."""
    path = files_of(store, run_id) / name
    path.write_bytes(content)
    store.server.client().set_tag(run_id, f"harness.sha256.{name}", sha256_file(path))


def test_a_pickle_is_refused_and_not_loaded(store: LineageStore, tmp_path: Path) -> None:
    run_id, mark = delivered(store), tmp_path / "executed"
    bomb = pickle.dumps(Payload(mark))
    pickle.loads(bomb)
    assert mark.exists()  # the payload works when it is unpickled
    mark.unlink()
    for name in ("checkpoint.safetensors", "signed_mask.safetensors", "record.json"):
        put(store, run_id, name, bomb)
    readers: tuple[Callable[[], object], ...] = (
        lambda: load_checkpoint(run_id, store.tracking_uri, tmp_path / "none"),
        lambda: load_signed_mask(run_id, store.tracking_uri, tmp_path / "none"),
        lambda: store.load(run_id),
        lambda: store.find(key_of("level 0")),
        lambda: write_bundle(store, [run_id], tmp_path / "bundle"),
    )
    for read in readers:
        with pytest.raises(ValueError) as refused:
            read()
        assert "\n" not in str(refused.value)
    assert not mark.exists()


def test_reading_code_uses_no_pickle_or_eval() -> None:
    """Search the source for pickle, eval, exec and MLflow model loading.

    `torch.load` is allowed only in harness/checkpoint.py and only with `weights_only=True`.
    """
    forbidden = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "eval", "exec", "pyfunc", "load_model"}
    paths = [*HARNESS.glob("lineage/**/*.py"), *HARNESS.glob("masks/*.py"), HARNESS / "checkpoint.py"]
    assert len(paths) > 20
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            names = {getattr(node, "id", None), getattr(node, "attr", None), getattr(node, "module", None)}
            names |= {one.name for one in getattr(node, "names", ()) if isinstance(one, ast.alias)}
            if isinstance(node, ast.ImportFrom) and names == {None, "pickle", "UnpicklingError"}:
                continue  # only the exception, which torch.load raises for refused content
            assert not names & forbidden, f"{path}:{getattr(node, 'lineno', '?')}"
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load":
                assert path == HARNESS / "checkpoint.py", path
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(ast.unparse(given) == "weights_only=True" for given in node.keywords), path


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a/../../escaped", "..", "a//b", "./a"])
def test_a_record_cannot_name_a_file_elsewhere(store: LineageStore, tmp_path: Path, name: str) -> None:
    """Plant a record with a path outside its directory.

    Its digest tag matches.
    """
    run_id = delivered(store)
    record = json.loads((files_of(store, run_id) / "record.json").read_bytes())
    record["files"][name] = "0" * 64
    put(store, run_id, "record.json", json.dumps(record).encode())
    before = {path for path in tmp_path.rglob("*") if "runs" not in path.parts}
    with pytest.raises(ValueError, match="allowed are relative paths"):
        store.find(key_of("level 0"))
    assert {path for path in tmp_path.rglob("*") if "runs" not in path.parts} == before
    assert list(store.local.directories()) == [] and not list(store.local.directory.glob(".tmp*"))


def test_a_link_in_a_local_store_is_not_followed_out_of_it(store: LineageStore, tmp_path: Path) -> None:
    run_id = delivered(store)
    path = files_of(store, run_id) / "signed_mask.safetensors"
    path.rename(tmp_path / "secret")  # the same bytes, so that the digest matches
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="links to a path outside of the run's files"):
        load_signed_mask(run_id, store.tracking_uri, tmp_path / "none")
    load_checkpoint(run_id, store.tracking_uri, tmp_path / "none")
    with pytest.raises(ValueError, match="links to a path outside of the run's files"):
        store.find(key_of("level 0"))


def test_download_never_lists_artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that a download requests single files and checks each name.

    A hostile server can list '../x', and MLflow's client would follow it.
    """

    def listing(*_: object) -> None:
        raise AssertionError("list_artifacts was called")

    written: list[str] = []
    monkeypatch.setattr(HttpArtifactRepository, "list_artifacts", listing)
    monkeypatch.setattr(LocalArtifactRepository, "list_artifacts", listing)
    monkeypatch.setattr(HttpArtifactRepository, "_download_file", lambda self, name, path: written.append(path))
    repository = HttpArtifactRepository("http://127.0.0.1:9/artifacts")
    assert download(repository, "figures/a.svg", tmp_path / "d") == tmp_path / "d" / "figures" / "a.svg"
    for name in ("../x", "/x", "figures/../../x"):
        with pytest.raises(ValueError, match="allowed are relative paths"):
            download(repository, name, tmp_path / "d")
    assert written == [str(tmp_path / "d" / "figures" / "a.svg")]


def test_tags_of_a_foreign_run_are_escaped_in_the_terminal(
    store: LineageStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """Check that every command escapes control characters in names and tags."""
    from harness.cli.lineage.asking import Diff, List, Show, Tree
    from harness.cli.lineage.store_options import StoreOptions

    run_id, client = delivered(store), store.server.client()
    for name in ("method", "level", "density", "init_seed", "mlflow.runName", "note"):
        client.set_tag(run_id, name, "\x1b[31m\u202e<script>")
    client.set_tag(run_id, "density", "no number\x1b[0m")
    assert find_node(store, run_id).name.startswith("\x1b")
    place = StoreOptions(store.local.directory, store.tracking_uri)
    for command in (List(place=place), Show(run_id, place), Tree(run_id, place), Diff(run_id, run_id, place)):
        command.run()
        shown = capsys.readouterr().out
        assert "\x1b" not in shown and "\u202e" not in shown and "\\x1b[31m" in shown
