"""Test all names by which `load_signed_mask`, `load_checkpoint` and `load_network` find a run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from harness import lineage, load_checkpoint, load_network, load_signed_mask
from harness.checkpoint import Checkpoint
from harness.lineage.bundle import write_bundle
from harness.lineage.nodes.record import LineageRecord
from harness.lineage.store import LineageStore
from harness.masks import Mask, SignedMask
from harness.runs.run import FinishedRun
from tests.lineage.lineage_story import copied_store, network_files
from tests.lineage.shared_run import made_search
from tests.made_search import MadeSearch

LOADERS = (load_signed_mask, load_checkpoint, load_network)
MODEL = "aws-digits-resnet8-w2"


@dataclass(frozen=True)
class Made:
    """A delivered search with two levels, two final trainings and a comparison."""

    search: MadeSearch
    store: LineageStore
    run_ids: dict[str, str]

    def names(self, name: str, copy: Path) -> dict[str, Any]:
        """Return everything that names a run.

        Args:
            name: Short name of the run.
            copy: Empty directory for links and a bundle.
        """
        # Phase: copies of the run.
        key, run_id, directory = self.search.keys[name], self.run_ids[name], self.search.directory(name)
        (copy / "link").symlink_to(directory)
        write_bundle(self.store, [key], copy / "bundle", checkpoints=True)
        shutil.copytree(directory, copy / "renamed")

        # Phase: texts, objects and paths.
        record, summary = self.store.local.load(key), lineage.find_node(self.store, key)
        local = lineage.find_node(lineage.open_store(self.store.local.directory, offline=True), key)
        return {
            **{f"key[:{digits}]": key[:digits] for digits in (64, 32, 20, 8)},
            **{f"run ID[:{digits}]": run_id[:digits] for digits in (32, 31, 8)},
            **{f"runs:/ {digits}": f"runs:/{run_id[:digits]}" for digits in (32, 8)},
            "runs:/ and /": f"runs:/{run_id}/",
            "runs:/ of a key": f"runs:/{key}",
            "runs:/ and the model": f"runs:/{run_id}/network",
            "summary": summary,
            "local summary": local,
            "record": record,
            "finished run": FinishedRun(key, Checkpoint({}, {}, 0, 0, key), SignedMask({}, Mask({})), record),
            "directory": directory,
            "directory as text": str(directory),
            "link": copy / "link",
            "renamed": copy / "renamed",
            "bundle": copy / "bundle",
        }


@pytest.fixture(scope="module")
def made(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    where = tmp_path_factory.mktemp("named")
    store = copied_store(empty_store, where)
    search = made_search(where / "runs", 1, ("signed_mask", "dense"))
    return Made(search, store, {name: store.deliver(search.directory(name)) for name in search.keys})


def loaded_by(load: Callable[..., Any], given: Any, made: Made, runs: Path | None = None) -> str:
    """Return the digest of what a loader returns."""
    found = load(given, made.store.tracking_uri, runs or made.store.local.directory)
    if isinstance(found, nn.Module):
        assert not found.training and found(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
        return Checkpoint.of(found, level=0, epochs=0, level_digest="").digest
    return str(found.digest)


def wanted(load: Callable[..., Any], made: Made, name: str) -> str:
    directory = made.search.directory(name)
    if load is load_signed_mask:
        return SignedMask.load(directory / "signed_mask.safetensors").digest
    return Checkpoint.load(directory / "checkpoint.safetensors").digest


@pytest.mark.long
def test_every_name_finds_the_run_for_every_loader(made: Made, tmp_path: Path) -> None:
    for what, given in made.names("L01", tmp_path).items():
        for load in LOADERS:
            assert loaded_by(load, given, made) == wanted(load, made, "L01"), (load.__name__, what)


@pytest.mark.parametrize("name", ["L00", "signed_mask", "dense"])
def test_levels_and_final_trainings_are_loaded(made: Made, name: str) -> None:
    for given in (made.run_ids[name], made.search.directory(name)):
        for load in LOADERS:
            assert loaded_by(load, given, made) == wanted(load, made, name)


@pytest.mark.long
def test_the_server_alone_finds_runs_and_models(made: Made, tmp_path: Path) -> None:
    """Load by IDs and model URIs without local runs. Nothing is written."""
    key, run_id = made.search.keys["L01"], made.run_ids["L01"]
    nowhere = tmp_path / "none"
    for given in (
        *(key, key[:9], run_id, run_id[:9], f"runs:/{run_id}", lineage.find_node(made.store, key)),
        *(f"models:/{MODEL}/2", f"models:/{MODEL}@s1-L01"),
    ):
        for load in LOADERS:
            assert loaded_by(load, given, made, nowhere) == wanted(load, made, "L01"), given
    assert not nowhere.exists()


@pytest.mark.parametrize(
    "uri", ["runs:/{}", "runs:/{}/network", "models:/" + MODEL + "/2", "models:/" + MODEL + "@s1-L01"]
)
def test_uris_choose_a_file(made: Made, uri: str) -> None:
    uri = uri.format(made.run_ids["L01"])
    assert loaded_by(load_signed_mask, f"{uri}/signed_mask.safetensors", made) == wanted(load_signed_mask, made, "L01")
    for load in (load_checkpoint, load_network):
        assert loaded_by(load, f"{uri}/checkpoint.safetensors", made) == wanted(load, made, "L01")
    with pytest.raises(LookupError, match=r"has no file 'x.safetensors'; it has: |has no x.safetensors; it has: "):
        load_signed_mask(f"{uri}/x.safetensors", made.store.tracking_uri, made.store.local.directory)
    with pytest.raises(ValueError, match=r"checkpoint.safetensors has format harness.checkpoint/1; this version"):
        load_signed_mask(f"{uri}/checkpoint.safetensors", made.store.tracking_uri, made.store.local.directory)


def test_a_search_gives_its_initial_network_by_file(made: Made) -> None:
    initial = Checkpoint.load(made.search.directory("search") / "theta_init.safetensors").digest
    for given in (
        f"runs:/{made.run_ids['search']}/theta_init.safetensors",
        f"runs:/{made.search.keys['search']}/network/theta_init.safetensors",
        made.search.directory("search") / "theta_init.safetensors",
    ):
        for load in (load_checkpoint, load_network):
            assert loaded_by(load, given, made) == initial


def test_runs_without_one_network_list_those_that_can_be_loaded(made: Made) -> None:
    runs, ids = made.store.local.directory, made.run_ids
    for given in (made.search.keys["search"], ids["search"], made.search.directory("search")):
        with pytest.raises(LookupError, match="is a search, which has a network for each level") as caught:
            load_network(given, made.store.tracking_uri, runs)
        text = str(caught.value)
        assert text.index(ids["L01"][:12]) < text.index(ids["L00"][:12]) and "\n" not in text
        shown = text.split("; or ")[1].split(" for ")[0]
        assert load_network(shown, made.store.tracking_uri, runs) is not None, "the message names its initial network"
    with pytest.raises(LookupError, match="lmc: .* is a comparison, which has no network of its own") as caught:
        load_network(ids["lmc"], made.store.tracking_uri, runs)
    assert all(ids[name][:12] in str(caught.value) for name in ("signed_mask", "dense"))
    offline = Path(runs)
    with pytest.raises(LookupError, match=made.search.keys["L01"][:12]):
        load_network(made.search.keys["search"], "sqlite:///nowhere.db", offline)


def test_a_given_network_is_filled(made: Made) -> None:
    """Fill a network of the user, also from a file without a record, and refuse other networks."""
    key, runs = made.search.keys["L01"], made.store.local.directory
    other = load_network(made.search.keys["dense"], local_dir=runs)
    filled = load_network(key, local_dir=runs, model=nn.DataParallel(other.train()))
    assert filled.module is other and not other.training
    assert Checkpoint.of(other, level=0, epochs=0, level_digest="").digest == wanted(load_network, made, "L01")
    alone = made.store.local.directory.parent / "alone.safetensors"
    shutil.copy(made.search.directory("L01") / "checkpoint.safetensors", alone)
    with pytest.raises(LookupError, match=r"alone.safetensors is a file, .* give .* the network to fill: model=…"):
        load_network(alone)
    load_network(alone, model=load_network(made.search.keys["dense"], local_dir=runs))
    with pytest.raises(ValueError, match="the checkpoint does not fit the network"):
        load_network(key, local_dir=runs, model=nn.Linear(2, 2))


def test_the_loaded_mask_tells_its_run(made: Made, tmp_path: Path) -> None:
    runs = made.store.local.directory
    signs = load_signed_mask(made.run_ids["L01"][:10], made.store.tracking_uri, runs)
    first, _, third = repr(signs).splitlines()
    assert first.startswith("SignedMask: ") and "(density 0.8" in first
    title = made.store.local.load(made.search.keys["L01"]).name
    assert third == f"  level 1, method aws, classifier fc, run {title} (run ID {made.run_ids['L01'][:12]}…)"
    signs.save(tmp_path / "copy.safetensors")
    assert repr(load_signed_mask(tmp_path / "copy.safetensors")).splitlines()[2].startswith("  level 1, key ")
    held = load_signed_mask(made.search.keys["dense"], local_dir=runs)
    assert "kind_of_training dense" in repr(held)


# ---------------------------------------------------------------------- errors


def commit(store: LineageStore, key: str, level: int) -> Path:
    store.local.commit(LineageRecord(key, "level", f"level {level}", started_ms=level), network_files(level))
    found = store.local.find(key)
    assert found is not None
    return found


def test_ambiguous_digits_are_refused_with_the_runs(store: LineageStore) -> None:
    """Two local runs, one local and one delivered run, and a run ID and a key."""
    keys = ["abcdef" + digit * 58 for digit in "012"]
    paths = [commit(store, key, level) for level, key in enumerate(keys)]
    load = (load_signed_mask, load_checkpoint, load_network)
    run_id = store.deliver(paths[2])
    commit(store, run_id[:6] + ("8" if run_id[6] == "9" else "9") * 58, 7)
    for text, listed in (("abcdef", ["level 0", "level 1", "level 2"]), (run_id[:6], ["level 2", "level 7"])):
        for one in load:
            with pytest.raises(LookupError, match=f"{text!r} matches more than one run") as caught:
                one(text, store.tracking_uri, store.local.directory)
            assert all(name in str(caught.value) for name in listed) and "\n" not in str(caught.value)
    assert load_signed_mask(run_id[:7], store.tracking_uri, store.local.directory).metadata == {"level": 2}
    assert load_signed_mask("abcdef1", store.tracking_uri, store.local.directory).metadata == {"level": 1}


def test_the_run_id_of_a_delivered_run_works_offline(made: Made) -> None:
    offline = lineage.open_store(made.store.local.directory, offline=True)
    for name, run_id in made.run_ids.items():
        for digits in (32, 12):
            assert lineage.find_node(offline, run_id[:digits]).key == made.search.keys[name]
    with pytest.raises(LookupError, match="no run ID or key begins with"):
        lineage.find_node(offline, "0" * 32)


def test_short_keys_of_local_runs_work_while_the_server_is_down(
    store: LineageStore, caplog: pytest.LogCaptureFixture
) -> None:
    commit(store, "abcdef" + "0" * 58, 0)
    (store.local.directory.parent / "mlflow.db").write_bytes(b"no database")
    assert load_signed_mask("abcdef", store.tracking_uri, store.local.directory).metadata == {"level": 0}
    assert "searching local runs only" in caplog.text
    commit(store, "abcdef" + "1" * 58, 1)
    with pytest.raises(ConnectionError):
        load_signed_mask("abcdef", store.tracking_uri, store.local.directory)


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "nothing": ("", LookupError, "'' is not a run ID or another name of a run; give a run ID"),
    "too short": ("abc", LookupError, "'abc' is not a run ID"),
    "upper case": ("ABCDEF", LookupError, "no run ID or key begins with 'abcdef'"),
    "unknown digits": ("abcd1234", LookupError, "no run ID or key begins with 'abcd1234'"),
    "unknown run ID": ("0" * 32, LookupError, "no run '0{32}'"),
    "unknown key": ("0" * 64, LookupError, "no run with key 0{16}"),
    "no run of a URI": ("runs:/", LookupError, "is not a URI of a run; give runs:/RUN_ID"),
    "a name in a URI": ("runs:/L07/x", LookupError, "'runs:/L07/x' is not a URI of a run"),
    "another scheme": ("s3://bucket/x", LookupError, "is not a run ID"),
    "a missing file": (Path("no/such/file.safetensors"), LookupError, "there is no file or directory 'no/such/file"),
    "a missing file with a line break": ("no/such\nfile", LookupError, "there is no file or directory"),
    "an empty directory": ("empty", LookupError, "empty is not the directory of a run: it has no record.json and no "),
    "a directory of runs": ("runs", LookupError, "runs is a directory of 2 runs; give one of them: runs/level-1"),
    "a dead link": ("dead", LookupError, "dead is neither a file nor the directory of a run"),
    "a number": (3, TypeError, "an object of type int names no run; give a run ID"),
    "None": (None, TypeError, "type NoneType names no run"),
    "bytes": (b"abcd", TypeError, "type bytes names no run"),
    "an object with another key": (torch.nn.Parameter(torch.ones(1)), TypeError, "type Parameter names no run"),
}


@pytest.mark.parametrize(("given", "kind", "complaint"), WRONG.values(), ids=WRONG)
def test_wrong_names_are_one_line_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Any, kind: type[Exception], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    store = lineage.open_store("runs", offline=True)
    commit(store, "1" * 64, 0)
    commit(store, "2" * 64, 1)
    Path("empty").mkdir()
    os.symlink("nowhere", "dead")
    for load in LOADERS:
        with pytest.raises(kind, match=complaint) as caught:
            load(given)
        assert "\n" not in str(caught.value)


def test_a_path_is_no_beginning_of_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file called like the first digits of a key is the file. A complete key is the key."""
    monkeypatch.chdir(tmp_path)
    key = "abcdef" + "0" * 58
    directory = commit(lineage.open_store("runs", offline=True), key, 0)
    commit(lineage.open_store("others", offline=True), "1" * 64, 5)
    for name in ("abcdef", key):
        shutil.copy("others/level-" + "1" * 16 + "/signed_mask.safetensors", name)
    assert load_signed_mask("abcdef").metadata == {"level": 5}
    assert load_signed_mask(key).metadata == {"level": 0} == load_signed_mask(directory).metadata


def test_a_bundle_of_several_results_lists_them(made: Made, tmp_path: Path) -> None:
    keys = [made.search.keys[name] for name in ("signed_mask", "dense")]
    write_bundle(made.store, keys, tmp_path / "two", checkpoints=True)
    with pytest.raises(LookupError, match="is a bundle of several results; give the directory of one: nodes/training-"):
        load_signed_mask(tmp_path / "two")
    write_bundle(made.store, keys[:1], tmp_path / "light")
    assert load_signed_mask(tmp_path / "light").density < 1
    with pytest.raises(ValueError, match=r"checkpoint.safetensors of .* was .*left out"):
        load_network(tmp_path / "light")
    record = next((tmp_path / "light/nodes").glob("training-*/record.json"))
    record.write_bytes(record.read_bytes() + b" ")
    with pytest.raises(ValueError, match="record.json was altered"):
        load_signed_mask(tmp_path / "light")


def test_an_altered_file_of_a_directory_is_refused(made: Made, tmp_path: Path) -> None:
    for file in ("signed_mask.safetensors", "record.json"):
        shutil.copytree(made.search.directory("L01"), tmp_path / file)
        path = tmp_path / file / file
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
        for given in (tmp_path / file, tmp_path / file / "signed_mask.safetensors"):
            with pytest.raises(ValueError, match=f"{file}.* was altered"):
                load_signed_mask(given)
