"""Test `lineage.py gc`: listed files, protected files and records of deletions."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from harness.common.process import Process
from harness.config import Schedule
from harness.lineage.nodes.local_files import LocalNodes
from harness.lineage.nodes.record import CHECKPOINT
from harness.lineage.proof import verify
from harness.lineage.proof.networks import Architecture
from harness.lineage.reload import load_checkpoint, load_signed_mask
from harness.lineage.store import LineageStore, open_store
from harness.runs.garbage import Garbage, Policy, delete_garbage, find_garbage
from harness.runs.unfinished import Unfinished
from tests.made_search import MadeSearch, small_config
from tests.warm import warm

TOOL = Path(__file__).parents[2] / "tools" / "lineage.py"


@pytest.fixture
def search(tmp_path: Path) -> MadeSearch:
    """Return a search with final trainings of its last level.

    It has four pruning levels, two final trainings and their comparison.
    """
    config = small_config(tmp_path / "none", num_levels=4, final=Schedule(1, "step"))
    architecture = Architecture.built("resnet8", num_classes=10, channels=1, image_size=8, width=2)
    made = MadeSearch(LocalNodes(tmp_path / "runs"), config, architecture, "0" * 64)
    return made.make(("signed_mask", "retrain"))


def offline(search: MadeSearch) -> LineageStore:
    return open_store(search.nodes.directory, offline=True)


def levels(search: MadeSearch, items: list[Garbage]) -> list[str]:
    """Return the short names of the levels whose checkpoints are listed."""
    paths = {search.directory(name) / CHECKPOINT: name for name in search.keys}
    return [paths[item.path] for item in items]


def delete(search: MadeSearch, policy: Policy) -> list[tuple[Garbage, str | None]]:
    return list(delete_garbage(find_garbage(offline(search), policy), policy))


def everything(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != ".index.json")
    return {str(path): path.read_bytes() for path in files}


def test_each_policy_lists_its_checkpoints(search: MadeSearch) -> None:
    before = everything(search.nodes.directory)
    for policy, expected in (
        (Policy("all"), []),
        (Policy("tickets"), ["L01", "L02", "L03"]),
        (Policy(2), ["L01", "L03"]),
        (Policy(3), ["L01", "L02"]),
        (Policy("tickets", older_than_days=1e6), []),
    ):
        assert levels(search, find_garbage(offline(search), policy)) == expected
    assert everything(search.nodes.directory) == before, "a dry run changed files"


def test_an_invalid_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="N ≥ 1"):
        Policy(0)
    with pytest.raises(ValueError, match="negative"):
        Policy("all", -1)


def test_deleted_checkpoints_are_recorded_as_deleted(search: MadeSearch) -> None:
    done = delete(search, Policy("tickets"))
    assert [why for _, why in done] == [None, None, None]
    assert sum(item.num_bytes for item, _ in done) > 0
    assert find_garbage(offline(search), Policy("tickets")) == []
    findings = verify(offline(search))
    assert findings.problems == []
    assert sum("gc --keep-levels tickets" in note.what for note in findings.notes) == 3
    assert findings.checked["nested"] == 4 and findings.checked["pruned"] == 1, "masks must still be verified"
    key = search.keys["L02"]
    assert load_signed_mask(key, local_dir=search.nodes.directory).density == pytest.approx(0.64, abs=0.01)
    with pytest.raises(ValueError, match=CHECKPOINT):
        load_checkpoint(key, local_dir=search.nodes.directory)


def test_a_deleted_checkpoint_that_comes_back_altered_is_found(search: MadeSearch) -> None:
    delete(search, Policy("tickets"))
    (search.directory("L01") / CHECKPOINT).write_bytes(b"something else")
    assert [problem.check for problem in verify(offline(search)).problems] == ["files"]


def test_an_altered_checkpoint_is_not_deleted(search: MadeSearch) -> None:
    path = search.directory("L02") / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    stays = {item.path: why for item, why in delete(search, Policy("tickets"))}
    assert "was altered" in (stays[path] or "") and path.is_file()
    assert not (path.parent / "deleted.json").exists()


def test_parents_of_unfinished_runs_are_kept(search: MadeSearch) -> None:
    unfinished = Unfinished(search.nodes.directory, "training", "a" * 64, "a training", [search.keys["L02"]])
    with unfinished.claimed({"kind": "retrain"}):
        assert levels(search, find_garbage(offline(search), Policy("tickets"))) == ["L01", "L03"]
    draft = unfinished.directory / "draft.json"
    assert levels(search, find_garbage(offline(search), Policy("tickets"))) == ["L01", "L03"], (
        "an interrupted run can resume"
    )
    for parents in ({}, {"parents": 3}, {"parents": [[]]}, {"parents": None}):  # of an earlier version, or damaged
        draft.write_text(json.dumps({"name": "a training", "config": {}, **parents}))
        assert find_garbage(offline(search), Policy("tickets")) == []
    draft.write_text("[" * 100_000)
    assert levels(search, find_garbage(offline(search), Policy("tickets"))) != []


@pytest.mark.long
def test_parents_of_runs_that_are_only_in_mlflow_are_kept(
    search: MadeSearch, empty_store: Path, tmp_path: Path
) -> None:
    """Keep the ticket of a final training on another machine."""
    uri = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"
    elsewhere = MadeSearch(LocalNodes(tmp_path / "elsewhere"), search.config, search.architecture, search.data_digest)
    elsewhere.config = search.config.__class__(**{**vars(search.config), "num_levels": 2})
    elsewhere.make(("mask",))
    list(open_store(tmp_path / "elsewhere", uri).sync())
    found = find_garbage(open_store(search.nodes.directory, uri), Policy("tickets"))
    assert levels(search, found) == ["L01", "L03"]


@pytest.mark.long
def test_leftovers_of_interrupted_commits(search: MadeSearch, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, host = search.nodes.directory, socket.gethostname()
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead = runs / f".tmp-level-{'0' * 16}.{host}.{process.pid}"
    alive = runs / f".tmp-level-{'1' * 16}.{host}.{os.getpid()}"
    foreign = runs / f".tmp-level-{'2' * 16}.elsewhere.7"
    fetched = runs / ".tmp-fetch-abc123"
    for path in (dead, alive, foreign, fetched):
        path.mkdir()
        (path / "file").write_bytes(b"12345")
    assert [(item.path, item.num_bytes) for item in find_garbage(offline(search), Policy())] == [(dead, 5)]
    # The own clock is a month ahead of the file server's.
    with monkeypatch.context() as patch:
        later = time.time() + 30 * 86_400
        patch.setattr(time, "time", lambda: later)
        assert [item.path for item in find_garbage(offline(search), Policy())] == [dead]
    age(foreign, days=2)
    age(fetched, days=2)
    assert {item.path for item in find_garbage(offline(search), Policy())} == {dead, foreign, fetched}
    delete(search, Policy())
    assert alive.is_dir() and not (dead.exists() or foreign.exists() or fetched.exists())


def age(path: Path, days: float) -> None:
    then = time.time() - days * 86_400
    for inside in (*path.rglob("*"), path):
        os.utime(inside, (then, then))


def test_states_of_finished_and_of_abandoned_runs(search: MadeSearch) -> None:
    runs = search.nodes.directory
    finished = Unfinished(runs, "level", search.keys["L01"], "finished")
    abandoned = Unfinished(runs, "level", "b" * 64, "abandoned")
    for unfinished in (finished, abandoned):
        with unfinished.claimed({"a": 1}):
            (unfinished.directory / "state-000001-000000001-x.safetensors").write_bytes(b"12345")
    assert [item.path for item in find_garbage(offline(search), Policy())] == [finished.directory]
    assert [item.path for item in find_garbage(offline(search), Policy(older_than_days=3))] == [finished.directory]
    age(abandoned.directory, days=4)
    listed = {item.path: item.why for item in find_garbage(offline(search), Policy(older_than_days=3))}
    assert "untouched for 4 days" in listed[abandoned.directory]
    assert {why for _, why in delete(search, Policy(older_than_days=3))} == {None}
    assert not finished.directory.exists() and not abandoned.directory.exists()


def test_a_run_that_is_being_made_stays(search: MadeSearch) -> None:
    held = Unfinished(search.nodes.directory, "level", search.keys["L01"], "held")
    with held.claimed({"a": 1}):
        ((item, why),) = delete(search, Policy())
        assert item.path == held.directory and "already being made" in (why or "")
        assert held.directory.is_dir()


def test_a_commit_that_may_be_at_work_stays(search: MadeSearch) -> None:
    for changes, is_dead in (
        ({}, False),
        ({"started": "1"}, True),  # the number was given to another process
        ({"namespace": "1"}, None),  # another container: its commit may be at work
        ({"boot": "00000000"}, None),
        ({"boot": "00000000", "pid": 2**22 + 1}, None),
    ):
        maker = replace(Process.current(), **changes)
        path = search.nodes.directory / f".tmp-level-{'1' * 16}.{maker.suffix}"
        path.mkdir()
        found = [item.path for item in find_garbage(offline(search), Policy())]
        assert found == ([path] if is_dead else []), changes
        # A day without a change is a sign of death where the process cannot be looked up.
        age(path, days=2)
        found = [item.path for item in find_garbage(offline(search), Policy())]
        assert found == ([] if is_dead is False else [path]), changes
        path.rmdir()


@pytest.mark.long
def test_the_command(search: MadeSearch, tmp_path: Path) -> None:
    command = ["gc", "--offline", "--runs", str(search.nodes.directory)]
    dry = warm(tmp_path, TOOL, *command, "--keep-levels", "2")
    assert dry.returncode == 0 and dry.stdout.count("checkpoint.safetensors") == 2 and "--delete does it" in dry.stdout
    answer = warm(tmp_path, TOOL, *command, "--keep-levels", "tickets", "--delete", "--json")
    content = json.loads(answer.stdout)
    assert answer.returncode == 0 and len(content["items"]) == 3 and content["num_bytes"] > 0
    assert not any(Path(item["path"]).exists() for item in content["items"])


def test_a_missing_directory_has_no_garbage(tmp_path: Path) -> None:
    assert find_garbage(open_store(tmp_path / "none", offline=True), Policy("tickets")) == []
