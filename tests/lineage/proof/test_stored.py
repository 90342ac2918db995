"""Test `verify` on faults in local files, in MLflow and in data."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

import pytest

from harness.lineage.nodes.absent_files import AbsentFile, write_absent_files
from harness.lineage.nodes.record import CHECKPOINT, CORRECT, SIGNED_MASK, THETA_INIT
from harness.lineage.proof import verify
from harness.lineage.store import LineageStore, open_store
from tests.free_port import free_port
from tests.lineage.proof.made import FOREIGN, found, local, make
from tests.made_search import MadeSearch
from tests.tracking_server import server
from tests.warm import warm

TOOL = Path(__file__).parents[3] / "tools" / "lineage.py"


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# ---------------------------------------------------------------------- local files

BYTES = [
    ("search", THETA_INIT, {("files", "made-up")}),
    ("search", "determinants.json", {("files", "made-up")}),
    ("L01", CHECKPOINT, {("files", "L01")}),
    ("L01", SIGNED_MASK, {("files", "L01")}),
    ("L01", CORRECT, {("files", "L01")}),
    ("L01", "config.json", {("files", "L01")}),
    ("L01", "determinants.json", {("files", "L01")}),
    ("signed_mask", CHECKPOINT, {("files", "signed_mask")}),
    ("signed_mask", SIGNED_MASK, {("files", "signed_mask")}),
    ("lmc", "barrier.json", {("files", "lmc:")}),
    ("lmc", CORRECT, {("files", "lmc:")}),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> MadeSearch:
    return make(tmp_path_factory.mktemp("whole"), data)


def copy_of(whole: MadeSearch, where: Path) -> Callable[[str], Path]:
    """Copy the local runs; return a function from short name to directory."""
    shutil.copytree(whole.nodes.directory, where, dirs_exist_ok=True)
    return lambda name: where / whole.directory(name).name


@pytest.mark.parametrize(("node", "file", "expected"), BYTES, ids=[f"{node} {file}" for node, file, _ in BYTES])
def test_a_changed_byte(whole: MadeSearch, tmp_path: Path, node: str, file: str, expected: set) -> None:
    directory = copy_of(whole, tmp_path)(node)
    flip(directory / file)
    findings = local(tmp_path)
    assert found(findings) == expected
    assert str(directory / file) in findings.problems[0].what


@pytest.mark.parametrize("file", ["record.json", "SHA256SUMS"])
def test_a_changed_byte_of_the_record(whole: MadeSearch, tmp_path: Path, file: str) -> None:
    """Check that an altered record is reported first.

    The rest of that run is unverifiable, so its children may report a missing parent too.
    """
    directory = copy_of(whole, tmp_path)("L02")
    flip(directory / file)
    problems = local(tmp_path).problems
    assert problems[0].check == "record" and str(directory) in problems[0].what
    assert {problem.check for problem in problems[1:]} <= {"parents"}


def test_a_missing_file(whole: MadeSearch, tmp_path: Path) -> None:
    (copy_of(whole, tmp_path)("L01") / SIGNED_MASK).unlink()
    assert found(local(tmp_path)) == {("files", "L01")}


def test_a_missing_parent(whole: MadeSearch, tmp_path: Path) -> None:
    shutil.rmtree(copy_of(whole, tmp_path)("L01"))
    assert found(local(tmp_path)) == {("parents", "L02")}


def test_masks_swapped_between_two_runs(whole: MadeSearch, tmp_path: Path) -> None:
    place = copy_of(whole, tmp_path)
    one, other = place("signed_mask") / SIGNED_MASK, place("mask") / SIGNED_MASK
    held = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(held)
    assert found(local(tmp_path)) == {("files", "signed_mask"), ("files", "mask")}


def test_masks_swapped_with_all_digests_forged(whole: MadeSearch, tmp_path: Path) -> None:
    """Swap two masks and recompute all digests, as a forger could.

    The key inside each file and the signs of the checkpoint still reveal the swap.
    """
    place = copy_of(whole, tmp_path)
    held = (place("signed_mask") / SIGNED_MASK).read_bytes()
    (place("signed_mask") / SIGNED_MASK).write_bytes((place("mask") / SIGNED_MASK).read_bytes())
    (place("mask") / SIGNED_MASK).write_bytes(held)
    for name in ("signed_mask", "mask"):
        forge_digests(place(name))
    names = ("signed_mask", "mask")
    assert found(local(tmp_path)) == {(check, name) for check in ("owner", "signs") for name in names}


def forge_digests(directory: Path) -> None:
    """Recompute the digests in record.json and SHA256SUMS from the present files."""
    from harness.common.digest import sha256_file

    record = json.loads((directory / "record.json").read_text())
    record["files"] = {name: sha256_file(directory / name) for name in record["files"]}
    (directory / "record.json").write_text(json.dumps(record))
    sums = record["files"] | {"record.json": sha256_file(directory / "record.json")}
    (directory / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))


def test_a_directory_under_another_name(whole: MadeSearch, tmp_path: Path) -> None:
    directory = copy_of(whole, tmp_path)("mask")
    directory.rename(directory.with_name("training-" + "0" * 16))
    assert found(local(tmp_path)) == {("record", "mask")}


def test_a_checkpoint_deleted_on_purpose_is_no_fault(whole: MadeSearch, tmp_path: Path) -> None:
    directory = copy_of(whole, tmp_path)("L01")
    digest = json.loads((directory / "record.json").read_text())["files"][CHECKPOINT]
    absent = AbsentFile(digest, 1, "2026-11-25T09:00:00+00:00", "--keep-levels tickets")
    write_absent_files(directory, {CHECKPOINT: absent})
    (directory / CHECKPOINT).unlink()
    findings = local(tmp_path)
    assert findings.problems == []
    (note,) = findings.notes
    assert CHECKPOINT in note.what and "2026-11-25" in note.what and "--keep-levels tickets" in note.what
    assert findings.checked["nested"] == 2 and findings.checked["pruned"] == 1


def test_a_deletion_note_for_other_bytes_does_not_excuse_a_missing_file(whole: MadeSearch, tmp_path: Path) -> None:
    directory = copy_of(whole, tmp_path)("L01")
    write_absent_files(directory, {CHECKPOINT: AbsentFile(FOREIGN, 1, "2026-11-25T09:00:00+00:00", "made up")})
    (directory / CHECKPOINT).unlink()
    assert found(local(tmp_path)) == {("files", "L01")}


# ---------------------------------------------------------------------- the data


@pytest.mark.parametrize("file", ["train.beton", "test.safetensors", "train.json"])
def test_altered_data(whole: MadeSearch, tmp_path: Path, data: Path, file: str) -> None:
    shutil.copytree(data, tmp_path / "data")
    if file.endswith(".json"):
        manifest = json.loads((tmp_path / "data" / "digits" / file).read_text())
        manifest["content_digest"] = FOREIGN
        (tmp_path / "data" / "digits" / file).write_text(json.dumps(manifest))
    else:
        flip(tmp_path / "data" / "digits" / file)
    findings = verify(open_store(whole.nodes.directory, offline=True), data_directory=tmp_path / "data")
    assert found(findings) == {("data", "digits")}


def test_a_missing_data_set_is_reported_as_unchecked(whole: MadeSearch, tmp_path: Path) -> None:
    findings = verify(open_store(whole.nodes.directory, offline=True), data_directory=tmp_path)
    assert findings.problems == [] and "data" not in findings.checked
    assert "does not exist" in findings.notes[0].what


# ---------------------------------------------------------------------- MLflow


def edit_tag(store: LineageStore, run_id: str) -> None:
    store.server.client().set_tag(run_id, "level", "07")


def edit_key(store: LineageStore, run_id: str) -> None:
    store.server.client().set_tag(run_id, "harness.sha256.checkpoint.safetensors", FOREIGN)


def edit_parents(store: LineageStore, run_id: str) -> None:
    store.server.client().set_tag(run_id, "harness.parents", json.dumps([["pruned-from", FOREIGN]]))


def remove_tag(store: LineageStore, run_id: str) -> None:
    store.server.client().delete_tag(run_id, "sgd_seed")


def log_another_error(store: LineageStore, run_id: str) -> None:
    store.server.client().log_metric(run_id, "test_error_percent", 0.1, step=99)


def reopen(store: LineageStore, run_id: str) -> None:
    store.server.client().update_run(run_id, status="RUNNING")


def change_file(store: LineageStore, run_id: str) -> None:
    flip(artifact(store, run_id, SIGNED_MASK))


def change_copy(store: LineageStore, run_id: str) -> None:
    (copy,) = store.local.directory.parent.rglob(f"{run_id}/artifacts/{SIGNED_MASK}")
    flip(copy)


def change_record(store: LineageStore, run_id: str) -> None:
    flip(artifact(store, run_id, "record.json"))


def remove_file(store: LineageStore, run_id: str) -> None:
    artifact(store, run_id, CHECKPOINT).unlink()


def artifact(store: LineageStore, run_id: str, name: str) -> Path:
    """Return the path at which MLflow stores a file of a run."""
    client = store.server.client()
    model = client.get_run(run_id).outputs.model_outputs[0].model_id
    (found,) = store.local.directory.parent.rglob(f"{model}/artifacts/{name}")
    return found


IN_MLFLOW: dict[str, tuple[Callable[[LineageStore, str], None], set[str]]] = {
    "edited tag": (edit_tag, {"tags"}),
    "edited digest": (edit_key, {"tags"}),
    "edited parents": (edit_parents, {"tags"}),
    "removed tag": (remove_tag, {"tags"}),
    "another error logged": (log_another_error, {"tags"}),
    "run not finished": (reopen, {"finished"}),
    "changed byte": (change_file, {"artifacts"}),
    "changed byte of the mask beside the layers": (change_copy, {"artifacts"}),
    "changed byte of the record": (change_record, {"artifacts"}),
    "missing file": (remove_file, {"artifacts"}),
}


@pytest.mark.long
def test_faults_in_sqlite(store: LineageStore, data: Path) -> None:
    """Check that `verify` finds each fault in MLflow.

    Each search of the store has two faults.
    """
    runs, planted = store.local.directory, {}
    faults = list(IN_MLFLOW)
    for seed, pair in enumerate(zip_longest(faults[::2], faults[1::2]), 2):
        keys = make(runs, data, finals=(), sgd_seed=seed).keys
        planted |= {keys[level]: name for level, name in zip(("L01", "L02"), pair, strict=True) if name}
    list(store.sync())
    assert verify(store).problems == []
    for key, name in planted.items():
        plant(store, key, name)
    by_fault: dict[str, set[str]] = {name: set() for name in IN_MLFLOW}
    for problem in verify(store).problems:
        assert problem.run_id is not None
        by_fault[planted[problem.key]].add(problem.check)
    assert by_fault == {name: checks for name, (_, checks) in IN_MLFLOW.items()}


def plant(store: LineageStore, key: str, name: str) -> None:
    run_id = store.run_id_of(key)
    assert run_id is not None
    IN_MLFLOW[name][0](store, run_id)


@pytest.mark.long
def test_faults_in_a_server_and_the_command_that_finds_them(tmp_path: Path, empty_store: Path, data: Path) -> None:
    port, runs = free_port(), tmp_path / "runs"
    shutil.copy(empty_store, tmp_path / "server.db")
    with server(tmp_path, port):
        store = open_store(runs, f"http://127.0.0.1:{port}", "test")
        search = make(runs, data, finals=())
        list(store.sync())
        plant(store, search.keys["L01"], "edited tag")
        plant(store, search.keys["L02"], "changed byte")
        flip(search.directory("L00") / CHECKPOINT)
        place = ["--runs", str(runs), "--tracking-uri", str(store.tracking_uri)]
        told = warm(tmp_path, TOOL, "verify", "--all", *place)
        assert told.returncode == 1, told.stderr
        for check in ("tags", "artifacts", "files"):
            assert f"\n  {check}: " in told.stdout
        assert "3 problems found" in told.stdout
        shutil.rmtree(runs)  # `verify` downloads runs that are only in MLflow, and keeps no copy
        problems = verify(store).problems
        assert {"artifacts", "tags"} <= {problem.check for problem in problems}
        assert not runs.exists()


@pytest.mark.long
def test_the_command_says_what_was_checked(whole: MadeSearch, tmp_path: Path) -> None:
    command = ["verify", "--runs", str(whole.nodes.directory), "--offline"]
    told = subprocess.run([sys.executable, str(TOOL), *command, "--all"], cwd=tmp_path, capture_output=True, text=True)
    assert (told.returncode, told.stderr) == (0, ""), told
    assert told.stdout.endswith("no problem found\n")
    answer = warm(tmp_path, TOOL, *command, whole.keys["L01"], "--json")
    content = json.loads(answer.stdout)
    assert content["problems"] == [] and content["num_nodes"] == 3 and content["checked"]["pruned"] == 1
    neither = warm(tmp_path, TOOL, *command)
    assert neither.returncode == 1 and neither.stderr.startswith("error: give either a RUN or --all")
