"""Test stores that were moved, and runs that people changed in MLflow."""

from __future__ import annotations

import json
import logging
import re
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from mlflow.tracking._tracking_service import utils
from safetensors.torch import save_file

from harness import load_checkpoint, load_signed_mask
from harness.checkpoint import Checkpoint
from harness.common.digest import sha256_file
from harness.lineage.browse.find import find_node, newest, newest_local
from harness.lineage.nodes.contents import OtherContentsError, differing, suspects
from harness.lineage.nodes.local_files import RECORD, SUMS, LocalNodes, read_record
from harness.lineage.nodes.origin import IMPORTED
from harness.lineage.proof import verify
from harness.lineage.proof.findings import Problem
from harness.lineage.store import LineageStore, SyncError, open_store
from harness.lineage.tracking.moved import present_place, relocate
from tests.lineage.lineage_story import checkpoint, commit_story, copied_store, key_of, network_files, signed_mask

pytestmark = pytest.mark.long

STORED = {"record", "files", "finished", "tags", "artifacts", "contents", "addresses"}
"""Checks of what is stored. The synthetic runs of the story need not pass those of the computation."""


def stored_problems(store: LineageStore) -> list[Problem]:
    return [problem for problem in verify(store).problems if problem.check in STORED]


@pytest.fixture(scope="module")
def delivered(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a store with a search of two levels, and its final trainings, all delivered."""
    where = tmp_path_factory.mktemp("delivered")
    store = copied_store(empty_store, where)
    store.deliver(commit_story(store.local, levels=2)["lmc"])
    return where


def copy_of(delivered: Path, where: Path) -> None:
    """Copy a store, with the right paths in its database."""
    shutil.copytree(delivered, where, dirs_exist_ok=True)
    relocate("", where / "mlflow.db")
    utils._artifact_repos_cache.clear()  # MLflow caches the places of files for a whole process


def store_in(where: Path) -> LineageStore:
    return open_store(where / "runs", f"sqlite:///{where / 'mlflow.db'}", "test")


# ---------------------------------------------------------------------- moved stores

PLACES = [
    # directories that exist; recorded location; its present place, below /q
    (("q/mlruns/e/1/artifacts",), "p/mlruns/e/1/artifacts", "mlruns/e/1/artifacts"),
    (("q/mlruns/e/1/artifacts", "p/mlruns/e/1/artifacts"), "p/mlruns/e/1/artifacts", "mlruns/e/1/artifacts"),
    (("q/mlruns/e",), "p/mlruns/e/2/artifacts", "mlruns/e/2/artifacts"),  # a new run
    (("q/mlruns/e", "p/mlruns/e"), "p/mlruns/e/2/artifacts", "mlruns/e/2/artifacts"),
    ((), "p/mlruns/e/2/artifacts", "mlruns/e/2/artifacts"),
    (("p/mlruns/e",), "p/mlruns/e/2/artifacts", None),  # only the database was moved
    (("p/mlruns/e/1/artifacts",), "p/mlruns/e/1/artifacts", None),
    (("q/mlruns/e", "p/mlruns/e/1/artifacts"), "p/mlruns/e/1/artifacts", None),  # this run's files were not copied
    (("q/mlruns/mlruns/1",), "p/mlruns/mlruns/1", "mlruns/mlruns/1"),  # an experiment of this name
    (("q/mlruns/e",), "q/mlruns/e/1/artifacts", None),
    (("q/mlruns/e",), "p/elsewhere/e/1", None),
]


@pytest.mark.parametrize(("there", "recorded", "now"), PLACES)
def test_the_place_of_files(tmp_path: Path, there: tuple[str, ...], recorded: str, now: str | None) -> None:
    for name in there:
        (tmp_path / name).mkdir(parents=True)
    database, wanted = tmp_path / "q" / "mlflow.db", tmp_path / "q" / now if now else None
    assert present_place(str(tmp_path / recorded), database) == wanted
    assert present_place((tmp_path / recorded).as_uri(), database) == wanted
    for remote in ("s3://b/mlruns/e/1", "mlflow-artifacts:/e/mlruns/1", "mlruns/0/1"):
        assert present_place(remote, database) is None


@pytest.mark.parametrize("copied", [False, True])
def test_a_moved_store(
    delivered: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, copied: bool
) -> None:
    # Phase: move or copy a store, without and with its local runs
    old, new = tmp_path / "p", tmp_path / "q"
    shutil.copytree(delivered, old)
    relocate(f"sqlite:///{old}/mlflow.db", old / "mlflow.db")
    shutil.copytree(old, new) if copied else old.rename(new)
    before = sorted(old.rglob("*"))
    monkeypatch.chdir(new)
    store = store_in(new)
    run_id = store.run_id_of(key_of("level 1"))
    assert run_id is not None
    for path in (new / "runs" / ".delivered").iterdir():  # as `runs` and the database were moved from the first place
        path.write_text(path.read_text().replace(str(delivered), str(tmp_path / "gone")))
    assert {node.run_id for node in newest_local(store)} == {node.run_id for node in store.summaries()}
    for runs in ("runs", "none"):
        for given in (run_id, "models:/aws-digits-resnet20@s1-L01", key_of("level 1")):
            mask = load_signed_mask(given, str(store.tracking_uri), runs)
            assert all(torch.equal(mask.signs[name], sign) for name, sign in signed_mask(1).signs.items())
            assert load_checkpoint(given, str(store.tracking_uri), runs).digest == checkpoint(1).digest
    told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1 and f"it records {old}/mlruns" in told[0] and "relocate" in told[0]

    # Phase: deliver a new level; nothing appears at the old path
    paths = commit_story(store.local, levels=3)
    new_id = store.deliver(paths["level 2"])
    assert sorted(old.rglob("*")) == before
    assert load_checkpoint(new_id, str(store.tracking_uri), "none").digest == checkpoint(2).digest

    # Phase: write the new paths
    done = relocate(store.tracking_uri, new / "mlflow.db")
    assert done.changed > 10 and done.lost == ()
    assert relocate(store.tracking_uri, new / "mlflow.db").changed == 0
    with sqlite3.connect(new / "mlflow.db") as connection:
        dump = "\n".join(connection.iterdump())
    assert str(old) + "/" not in dump


def test_relocate_explains(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="http://x is no SQLite store"):
        relocate("http://x", None)
    with pytest.raises(LookupError, match="there is no database"):
        relocate("sqlite:///x", tmp_path / "x.db")
    (tmp_path / "x.db").write_bytes(b"no database" * 100)
    with pytest.raises(OSError, match="cannot change"):
        relocate("sqlite:///x", tmp_path / "x.db")


# ---------------------------------------------------------------------- two makings of one key


def made_again(where: Path, name: str, seed: int | None = None) -> LineageStore:
    """Commit the story once more in another directory. `seed` gives one run other tensors."""
    store = open_store(where / "again", f"sqlite:///{where / 'mlflow.db'}", "test")
    later = LocalNodes(where / "later")
    for path in commit_story(later, levels=2).values():
        record = read_record(path)
        write = partial(shutil.copytree, path, dirs_exist_ok=True, ignore=shutil.ignore_patterns(RECORD, SUMS))
        if seed is not None and record.key == key_of(name):
            write = network_files(seed)
        # another machine takes another time
        store.local.commit(replace(record, files={}, started_ms=record.started_ms + 5, finished_ms=2**41), write)
    return store


def test_equal_bits_made_twice_are_one_run(delivered: Path, tmp_path: Path) -> None:
    # Phase: of one run, the delivery from the first machine was interrupted
    copy_of(delivered, tmp_path)
    again = made_again(tmp_path, "level 1")
    first, partial_id = again.run_id_of(key_of("level 1")), again.run_id_of(key_of("dense"))
    assert partial_id is not None
    MlflowClient(again.tracking_uri).update_run(partial_id, status="FAILED")
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute(f"UPDATE logged_models SET status = 1 WHERE source_run_id = '{partial_id}'")

    # Phase: deliver, verify
    assert [path.name for path, _ in again.sync()] == [f"training-{key_of('dense')[:16]}"]
    assert find_node(again, partial_id).key == key_of("dense")
    directory = again.local.find(key_of("level 1"))
    assert directory is not None and again.deliver(directory) == first
    shutil.rmtree(again.local.directory / ".delivered")
    found = verify(again)
    assert not STORED & {problem.check for problem in found.problems}
    assert sum("made twice" in note.what for note in found.notes) == 5


def test_other_bits_of_one_key_are_kept_apart(
    delivered: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Phase: sync delivers what it can, names the others, and fails
    copy_of(delivered, tmp_path)
    again = made_again(tmp_path, "level 1", seed=77)
    theirs = again.run_id_of(key_of("level 1"))
    with pytest.raises(SyncError) as failed:
        list(again.sync())
    (line,) = failed.value.problems
    assert "'aws resnet20 L01 d0.800'" in line and f"MLflow run {theirs} has the same key" in line
    assert "checkpoint.safetensors and signed_mask.safetensors" in line

    # Phase: each copy keeps its own contents, by key, by run ID and in a list
    directory = again.local.find(key_of("level 1"))
    assert directory is not None and again.delivered(directory) is None
    uri = str(again.tracking_uri)
    assert load_checkpoint(str(theirs), uri, again.local.directory).digest == checkpoint(1).digest
    assert load_checkpoint(key_of("level 1"), uri, again.local.directory).digest == checkpoint(77).digest
    with again.open_file_of(find_node(again, str(theirs)), "checkpoint.safetensors") as path:
        assert Checkpoint.load(path).digest == checkpoint(1).digest
    (marked,) = [node for node in newest(again) if node.other_run_id is not None]
    assert (marked.key, marked.other_run_id, marked.run_id) == (key_of("level 1"), theirs, None)
    assert [problem.check for problem in stored_problems(again)] == ["contents"]

    # Phase: their children do not continue this run, and its new children stay local
    shutil.rmtree(again.local.directory / f"training-{key_of('signed_mask')[:16]}")
    shutil.rmtree(again.local.directory / f"analysis-{key_of('lmc')[:16]}")
    assert again.find(key_of("signed_mask")) is None and again.find(key_of("lmc")) is None
    assert "'signed_mask resnet20 s1' in MLflow is not used, because of its parent 'aws resnet20 L01" in caplog.text
    third = commit_story(again.local, levels=3)["level 2"]
    with pytest.raises(OtherContentsError, match="L01"):
        again.deliver(third)

    # Phase: the same without the tags that say so
    client = MlflowClient(uri)
    for name in client.get_run(str(theirs)).data.tags:
        if name.startswith("harness.sha256."):
            client.delete_tag(str(theirs), name)
    child = again.run_id_of(key_of("signed_mask"))
    client.delete_tag(str(child), "harness.parent_run_ids")
    shutil.rmtree(again.local.directory / f"training-{key_of('signed_mask')[:16]}")
    fresh = LineageStore(uri, again.local, "test")
    assert fresh.find(key_of("signed_mask")) is None
    with pytest.raises(OtherContentsError, match="L01"):
        fresh.deliver(directory)
    assert [node.key for node in newest(fresh) if node.other_run_id is not None] == [key_of("level 1")]


FILES = [
    # what differs between the two makings; the files that count
    ({"checkpoint.safetensors": {"a": [1.0]}}, {"checkpoint.safetensors": {"a": [1.0]}}, []),
    ({"checkpoint.safetensors": {"a": [1.0]}}, {"checkpoint.safetensors": {"a": [2.0]}}, ["checkpoint.safetensors"]),
    ({"checkpoint.safetensors": {"a": [1.0]}}, {"checkpoint.safetensors": {"b": [1.0]}}, ["checkpoint.safetensors"]),
    ({"checkpoint.safetensors": {"a": [0.0]}}, {"checkpoint.safetensors": {"a": [-0.0]}}, ["checkpoint.safetensors"]),
    ({"checkpoint.safetensors": {"a": [1.0]}}, {"checkpoint.safetensors": {"a": [[1.0]]}}, ["checkpoint.safetensors"]),
    ({"checkpoint.safetensors": {"a": [1.0]}}, {"checkpoint.safetensors": None}, ["checkpoint.safetensors"]),
    ({"correct.safetensors": {"a": [1.0]}}, {}, []),  # an earlier version recorded no images
    ({"layers.json": None}, {"layers.json": {"a": [1.0]}}, []),
    ({"barrier.json": {"error": [1.0]}}, {"barrier.json": {"error": [1.0], "more": 2}}, []),
    ({"barrier.json": {"error": [1.0]}}, {"barrier.json": {"error": [2.0]}}, ["barrier.json"]),
    ({"barrier.json": {"error": [1.0]}}, {"barrier.json": None}, ["barrier.json"]),
]


@pytest.mark.parametrize(("one", "other", "wanted"), FILES)
def test_only_tensors_of_common_files_count(tmp_path: Path, one: dict, other: dict, wanted: list[str]) -> None:
    digests = []
    for number, files in enumerate((one, other)):
        (tmp_path / str(number)).mkdir()
        for name, tensors in files.items():
            path = tmp_path / str(number) / name
            if tensors is None:
                path.write_bytes(b"{" * 100)
            elif name.endswith(".json"):
                path.write_text(json.dumps(tensors))
            else:  # another header
                save_file({n: torch.tensor(t) for n, t in tensors.items()}, path, {"format": str(number)})
        digests.append({name: sha256_file(tmp_path / str(number) / name) for name in files})
    names = suspects(*digests)
    opened = [lambda name, number=number: nullcontext(tmp_path / str(number) / name) for number in (0, 1)]
    assert differing(names, *opened) == wanted


# ---------------------------------------------------------------------- what people change in MLflow

NAME = "aws-digits-resnet20"


class Changes:
    """What people do in MLflow, each to one run."""

    def __init__(self, store: LineageStore) -> None:
        self.store, self.client = store, MlflowClient(store.tracking_uri)

    def run_id(self, name: str) -> str:
        run_id = self.store.run_id_of(key_of(name))
        assert run_id is not None
        return run_id

    def move_alias(self, name: str) -> None:
        self.client.set_registered_model_alias(NAME, "s1-L01", self.version("level 0"))

    def version(self, name: str) -> str:
        (found,) = self.client.search_model_versions(f"run_id = '{self.run_id(name)}'")
        return str(found.version)

    def delete_alias(self, name: str) -> None:
        self.client.delete_registered_model_alias(NAME, "s1-L00")

    def delete_version(self, name: str) -> None:
        self.client.delete_model_version(NAME, self.version(name))

    def delete_version_and_its_tag(self, name: str) -> None:
        self.delete_version(name)
        (made,) = self.client.get_run(self.run_id(name)).outputs.model_outputs
        self.client.delete_logged_model_tag(made.model_id, "mlflow.modelVersions")

    def delete_registered_model(self, name: str) -> None:
        self.client.delete_registered_model(NAME)

    def nest_elsewhere(self, name: str) -> None:
        self.client.set_tag(self.run_id(name), "mlflow.parentRunId", self.run_id("dense"))

    def link_elsewhere(self, name: str) -> None:
        self.client.set_tag(self.run_id(name), "harness.parent_run_ids", self.run_id("search"))

    def register_again(self, name: str) -> None:
        again = self.client.create_model_version(NAME, "elsewhere", run_id=self.run_id(name))
        self.client.set_registered_model_alias(NAME, "s1-L00", again.version)

    def unlink(self, name: str) -> None:
        self.client.delete_tag(self.run_id(name), "harness.parent_run_ids")

    def edit_the_key(self, name: str) -> None:
        self.client.set_tag(self.run_id(name), "harness.key", key_of("nothing"))

    def lose_earlier_ids(self, name: str) -> None:
        self.client.delete_tag(self.run_id(name), "harness.origin_run_id")

    def delete_copies(self, name: str) -> None:
        self.client.set_tag(self.run_id(name), "mlflow.loggedArtifacts", "[]")
        (Path(self.client.get_run(self.run_id(name)).info.artifact_uri) / "signed_mask.safetensors").unlink()

    def delete_graph(self, name: str) -> None:
        self.client.set_tag(self.run_id(name), "harness.overview", "x")
        shutil.rmtree(Path(self.client.get_run(self.run_id(name)).info.artifact_uri) / "lineage", ignore_errors=True)

    def lose_the_root(self, name: str) -> None:
        self.client.delete_tag(self.run_id(name), "harness.root")

    def edit_the_root(self, name: str) -> None:
        self.client.set_tag(self.run_id(name), "harness.root", "0" * 64)

    def delete_model(self, name: str) -> None:
        (made,) = self.client.get_run(self.run_id(name)).outputs.model_outputs
        self.client.delete_logged_model(made.model_id)

    def move_files_away(self, name: str) -> None:
        (made,) = self.client.get_run(self.run_id(name)).outputs.model_outputs
        shutil.rmtree(self.client.get_logged_model(made.model_id).artifact_location)

    def delete_run(self, name: str) -> None:
        self.client.delete_run(self.run_id(name))

    def delete_experiment(self, name: str) -> None:
        self.client.delete_experiment(self.client.get_experiment_by_name("test").experiment_id)


# change, run, what `verify` says about the run; the rows of one round are made together
ROUNDS = [
    [
        (Changes.move_alias, "level 1", f"models:/{NAME}@s1-L01 names version 1, but this run is version 2"),
        (Changes.nest_elsewhere, "signed_mask", "it is nested under run"),
        (Changes.link_elsewhere, "lmc", "it links to the parents"),
        (Changes.delete_model, "dense", "its logged model was deleted"),
        (Changes.move_files_away, "level 0", "checkpoint.safetensors in MLflow is missing"),
        (Changes.delete_copies, "level 1", "its own artifacts lack signed_mask.safetensors"),
        (Changes.delete_graph, "search", "its graph was deleted"),
    ],
    [
        (Changes.delete_alias, "level 0", f"models:/{NAME}@s1-L00 names no version, but this run is version 1"),
        (Changes.delete_version_and_its_tag, "level 1", f"it has no version in the registered model {NAME}"),
        (Changes.unlink, "signed_mask", "it links to the parents none"),
        (Changes.delete_run, "lmc", "was deleted, alone or with its experiment"),
        (Changes.edit_the_key, "dense", f"has the key {key_of('nothing')}, not"),
    ],
    [
        # the runs below keep their right tags, and the deleted one is delivered anew below a search without the tag
        (Changes.lose_the_root, "search", "it is in the tree of none"),
        (Changes.edit_the_root, "level 0", f"it is in the tree of {'0' * 64}"),
        (Changes.delete_run, "level 1", "was deleted, alone or with its experiment"),
        (Changes.register_again, "level 0", f"models:/{NAME}@s1-L00 names version"),
        (Changes.lose_earlier_ids, "lmc", "its earlier run ID"),
    ],
    [
        (Changes.delete_registered_model, "level 0", f"it has no version in the registered model {NAME}"),
        (Changes.delete_run, "level 1", "was deleted, alone or with its experiment"),
        (Changes.delete_run, "search", "was deleted, alone or with its experiment"),
    ],
    # restoring an experiment also restores runs that were deleted in it before, so that `sync` finds two of a key
    [(Changes.delete_experiment, name, "was deleted, alone or with its experiment") for name in ("search", "lmc")],
]


def test_what_people_change_is_reported_and_repaired(delivered: Path, tmp_path: Path) -> None:
    # Phase: a store without faults
    copy_of(delivered, tmp_path)
    store = store_in(tmp_path)
    changes = Changes(store)
    given = {name: changes.run_id(name) for name in ("search", "level 0", "level 1", "signed_mask", "dense", "lmc")}
    list(store.sync())
    assert stored_problems(store) == []
    tree = f"tags.`harness.root` = '{key_of('search')}'"
    num_runs = len(store.summaries(tree))

    # Phase: change, report, repair
    for rows in ROUNDS:
        for change, name, _ in rows[:1] if rows[0][0] is Changes.delete_experiment else rows:
            change(changes, name)
        problems = stored_problems(store)
        for _, name, said in rows:
            about = [problem for problem in problems if problem.key == key_of(name)]
            assert any(said in problem.what for problem in about), (name, said, about)
            assert any("sync" in problem.advice for problem in about)
        list(store_in(tmp_path).sync())
        assert stored_problems(store_in(tmp_path)) == [], rows
        assert len(store.summaries(tree)) == num_runs, rows

    # Phase: all IDs that were given out, and all aliases, name the same networks; descriptions have no dead links
    for level in (0, 1):
        for address in (given[f"level {level}"], f"models:/{NAME}@s1-L0{level}"):
            loaded = load_checkpoint(address, str(store.tracking_uri), tmp_path / "none")
            assert loaded.digest == checkpoint(level).digest
    note = changes.client.get_run(changes.run_id("signed_mask")).data.tags["mlflow.note.content"]
    levels = re.findall(r"runs/([0-9a-f]{32})", note)
    assert changes.run_id("level 1") in levels
    assert all(changes.client.get_run(run_id).info.lifecycle_stage == "active" for run_id in levels)
    assert find_node(store, given["search"]).key == key_of("search")


def test_edited_relations_do_not_spread(delivered: Path, tmp_path: Path) -> None:
    """`sync` takes a run's relations from its local record, not from the tags that it checks."""
    copy_of(delivered, tmp_path)
    store = store_in(tmp_path)
    changes = Changes(store)
    links = ("mlflow.parentRunId", "harness.root", "harness.parent_run_ids")
    before = {name: changes.client.get_run(changes.run_id(name)).data.tags for name in ("level 0", "level 1", "dense")}
    changes.client.delete_tag(changes.run_id("level 0"), "harness.nested_under")
    changes.client.delete_tag(changes.run_id("level 0"), "harness.kind")
    changes.client.set_tag(changes.run_id("level 1"), "harness.parents", "[[1]]")
    changes.client.delete_tag(changes.run_id("dense"), "harness.key")
    list(store_in(tmp_path).sync())
    for name in ("level 0", "level 1"):
        after = changes.client.get_run(changes.run_id(name)).data.tags
        assert {link: after.get(link) for link in links} == {link: before[name].get(link) for link in links}
    said = {problem.check for problem in stored_problems(store_in(tmp_path))}
    assert said == {"tags"}, "a person must decide about edited tags"


def test_a_deleted_run_is_delivered_again_from_a_directory_that_takes_no_notes(delivered: Path, tmp_path: Path) -> None:
    copy_of(delivered, tmp_path)
    store = store_in(tmp_path)
    changes = Changes(store)
    old = changes.run_id("lmc")
    shutil.rmtree(tmp_path / "runs" / IMPORTED, ignore_errors=True)
    (tmp_path / "runs" / IMPORTED).write_text("")  # no directory can be made here
    changes.delete_run("lmc")
    list(store_in(tmp_path).sync())
    assert find_node(store, old).key == key_of("lmc") and changes.run_id("lmc") != old


@pytest.mark.parametrize("later_ms", [1, -1])
def test_two_finished_runs_of_one_key(delivered: Path, tmp_path: Path, later_ms: int) -> None:
    """Two hosts can deliver one run at the same moment. `sync` keeps the oldest, and the ID of the other finds it.

    The second run has no files, as after a copy of the tags alone. So it is not kept, even if it is older.
    """
    copy_of(delivered, tmp_path)
    store = store_in(tmp_path)
    client, first = MlflowClient(store.tracking_uri), store.run_id_of(key_of("dense"))
    assert first is not None
    run = client.get_run(first)
    tags = {name: value for name, value in run.data.tags.items() if name.startswith("harness.")}
    second = client.create_run(run.info.experiment_id, tags=tags, start_time=run.info.start_time + later_ms).info.run_id
    client.set_terminated(second, "FINISHED")
    said = [problem.what for problem in stored_problems(store) if problem.check == "addresses"]
    assert any((second if later_ms > 0 else first) in what for what in said)
    for path in store.local.directories() if later_ms < 0 else ():
        shutil.rmtree(path)  # so that nothing can be sent again
    assert list(store.sync()) == []
    assert store.run_id_of(key_of("dense")) == first and find_node(store, second).run_id == first
    assert stored_problems(store) == []


def test_deliveries_to_one_sqlite_file_wait_for_each_other(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deliver one run from two directories at the same moment."""
    one = copied_store(empty_store, tmp_path)
    two = open_store(tmp_path / "again", str(one.tracking_uri), "test")
    paths = [commit_story(each.local, levels=1)["level 0"] for each in (one, two)]
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(store.deliver, path) for store, path in zip((one, two), paths, strict=True)]
        ids = {job.result() for job in jobs}
    assert len(ids) == 1 and len(one.summaries()) == 2

    # Phase: a wait has an end
    monkeypatch.setattr("harness.lineage.tracking.server._DELIVERY_SECONDS", 0.1)
    third = commit_story(one.local, levels=2)["level 1"]
    with two.server.alone(), pytest.raises(ConnectionError, match="another process is still delivering"):
        one.deliver(third)
