"""Disturb a store as `tools/crashtest.py --scenario` does, in short forms without training.

Two directories share one database. A database is restored from an older copy. A person changes runs in MLflow's pages.
A disk has errors. Nothing may be lost, and each node must have exactly one finished run.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from harness.lineage.nodes.local_files import LocalNodes, read_record
from harness.lineage.proof import verify
from harness.lineage.store import LineageStore, open_store
from tests.lineage.lineage_story import commit_story, key_of
from tests.lineage.proof.made import ARCHITECTURE, FOREIGN
from tests.made_search import MadeSearch, small_config
from tools.crash_scenarios import alias_is_right, delete_a_run, move_an_alias


def small(runs: Path, levels: int = 1) -> MadeSearch:
    """Commit a search with invented weights: level 0, and `levels` more."""
    config = small_config(runs / "no data", levels)
    return MadeSearch(LocalNodes(runs), config, ARCHITECTURE, FOREIGN).make()


def again(store: LineageStore, runs: Path | None = None) -> LineageStore:
    """Open the database anew, as another launch does, on the same directory or another one."""
    return open_store(runs or store.local.directory, store.tracking_uri, "test")


def finished(store: LineageStore) -> Counter[str]:
    """Count the finished runs of each key. No run may be unfinished."""
    runs = again(store).summaries()
    assert {run.status for run in runs} <= {"FINISHED"}
    return Counter(run.key for run in runs)


@pytest.mark.long
def test_two_directories_deliver_to_one_database(store: LineageStore, tmp_path: Path) -> None:
    searches = [small(tmp_path / name, levels=0) for name in ("first", "second")]
    assert searches[0].keys == searches[1].keys
    for search in searches:
        list(again(store, search.nodes.directory).sync())
    assert finished(store) == Counter(searches[0].keys.values())
    assert verify(again(store, searches[0].nodes.directory)).problems == []


@pytest.mark.long
def test_two_directories_deliver_at_one_moment(store: LineageStore, tmp_path: Path) -> None:
    searches = [small(tmp_path / name, levels=0) for name in ("first", "second")]
    stores = [again(store, search.nodes.directory) for search in searches]
    with ThreadPoolExecutor(2) as pool:
        # the two share the work: the number that each delivers is not fixed
        list(pool.map(lambda store: list(store.sync()), stores))
    assert finished(store) == Counter(searches[0].keys.values())


@pytest.mark.long
def test_a_database_restored_from_an_older_copy_is_completed(store: LineageStore) -> None:
    search = small(store.local.directory)
    database = store.local.directory.parent / "mlflow.db"
    store.deliver(search.directory("L00"))
    shutil.copy(database, database.with_name("copy.db"))
    list(again(store).sync())
    assert finished(store) == Counter(search.keys.values())
    shutil.copy(database.with_name("copy.db"), database)
    assert finished(store) == Counter([search.keys["search"], search.keys["L00"]])
    list(again(store).sync())
    assert finished(store) == Counter(search.keys.values())
    assert verify(again(store)).problems == []


@pytest.mark.long
def test_a_run_deleted_in_mlflow_is_delivered_again(store: LineageStore) -> None:
    search = small(store.local.directory)
    list(store.sync())
    deleted = delete_a_run(store.server.client())
    assert finished(store)[search.keys["L01"]] == 0
    list(again(store).sync())
    assert finished(store) == Counter(search.keys.values())
    assert again(store).run_id_of(search.keys["L01"]) != deleted
    assert verify(again(store)).problems == []


@pytest.mark.long
def test_an_alias_moved_in_mlflow_is_moved_back(store: LineageStore) -> None:
    small(store.local.directory)
    list(store.sync())
    moved = move_an_alias(store.server.client())
    assert not alias_is_right(store.server.client(), *moved)
    list(again(store).sync())
    assert alias_is_right(store.server.client(), *moved)


# ---------------------------------------------------------------------- a disk with errors

CALLS = ("replace", "rename", "fsync", "mkdir", "link")


class BadDisk:
    """Let the n-th of the calls that write fail with EIO."""

    def __init__(self, patch: pytest.MonkeyPatch, number: int) -> None:
        self.left, self.failed = number, ""
        for name in CALLS:
            patch.setattr(os, name, self._failing(name, getattr(os, name)))

    def _failing(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                self.failed = name
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(arguments[0]))
            return call(*arguments, **options)

        return wrapper


def test_an_error_of_the_disk_in_any_call_leaves_whole_nodes(tmp_path: Path) -> None:
    """Commit six runs with one failing call, for each call. A run is there whole or not at all."""
    failed: Counter[str] = Counter()
    for number in range(1, 400):
        nodes = LocalNodes(tmp_path / str(number))
        with pytest.MonkeyPatch.context() as patch:
            disk = BadDisk(patch, number)
            try:
                commit_story(nodes, levels=1)
            except OSError as error:
                assert error.errno == errno.EIO
        if not disk.failed:
            break
        failed[disk.failed] += 1
        for directory in nodes.directory.glob("*-*"):
            assert not directory.name.startswith(".") and read_record(directory).files
        assert_whole(nodes, commit_story(LocalNodes(nodes.directory), levels=1))
    else:
        raise AssertionError("a story takes more calls than expected")
    assert failed["fsync"] > 10 and failed["replace"] + failed["rename"] >= 5, failed


def assert_whole(nodes: LocalNodes, paths: dict[str, Path]) -> None:
    """Check that every run of the story is there with all its files, and no other run."""
    from harness.common.digest import sha256_file

    assert {path.name for path in nodes.directory.glob("*-*") if not path.name.startswith(".")} == {
        path.name for path in paths.values()
    }
    for name, path in paths.items():
        record = read_record(path)
        assert record.key == key_of(name)
        assert record.files == {file: sha256_file(path / file) for file in record.files}
