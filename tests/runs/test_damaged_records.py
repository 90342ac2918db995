"""Test every parser of records, states and networks against damaged files.

A parser reads the file, refuses it in one line that names it, or does without it. A file with a digest is never taken
with other values.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import settings
from safetensors.torch import save_file

import harness
import harness.runs.unfinished
from harness.analysis.barrier import BarrierCurve
from harness.checkpoint import Checkpoint, read_network
from harness.cli.resolve import resolve_ticket
from harness.common.digest import sha256_file, sha256_tensors
from harness.common.tensors import load_correct, save_correct
from harness.config import TicketConfig
from harness.distributed.status import _is_anothers
from harness.distributed.world import World
from harness.lineage.browse.find import find_node, newest_local
from harness.lineage.browse.progress import unfinished_searches
from harness.lineage.bundle import import_bundle, write_bundle
from harness.lineage.nodes.absent_files import ABSENT_FILES, AbsentFile, read_absent_files, write_absent_files
from harness.lineage.nodes.contents import same_tensors
from harness.lineage.nodes.index import INDEX
from harness.lineage.nodes.local_files import DELIVERED, DETERMINANTS, RECORD, SUMS, LocalNodes, read_record, write_sums
from harness.lineage.nodes.origin import IMPORTED, origin_of, origins, remember_origin
from harness.lineage.proof import verify
from harness.lineage.proof.networks import Architecture
from harness.lineage.recorded_network import read_model
from harness.lineage.store import LineageStore
from harness.masks import SignedMask
from harness.reproduction.side_by_side import read_numbers
from harness.reproduction.study import read_study
from harness.reproduction.study_records import ChainRecords, RunLine
from harness.runs.garbage import Policy, find_garbage
from harness.runs.state_saver import _check_header
from harness.runs.unfinished import Unfinished
from recipes.presets.figures import SCALES
from recipes.reproduce import STUDIES
from tests.damage import ORDINARY, THOROUGH, Parser, attack, check, every_kind
from tests.lineage.lineage_story import checkpoint, commit_story, key_of, signed_mask
from tests.made_search import MadeSearch, small_config
from tests.mask_formats import as_format_1

pytestmark = pytest.mark.filterwarnings("ignore")
CHECKPOINT, MASK = "checkpoint.safetensors", "signed_mask.safetensors"
T = {"w": torch.arange(12.0).reshape(3, 4), "b": torch.ones(2)}
HEADER: dict[str, Any] = {"epoch": 1, "step": 0, "seconds": 0.5, "scaler": {}, "metrics": [["a", 1.0, 1, 1]]}
HEADER |= {"started_ms": 1, "circumstances": {"device": "cpu"}}
CURVE = BarrierCurve((0.0, 0.5, 1.0), (12.0, 20.0, 14.0), 14.0, 12.0, "none", 0, 20)


def _store(root: Path) -> LineageStore:
    commit_story(LocalNodes(root), levels=1)
    return LineageStore(None, LocalNodes(root))


def _seal(directory: Path) -> Callable[[], None]:
    """Return a function that corrects the digest of record.json, and no other."""
    record = read_record(directory)

    def seal() -> None:
        if (directory / RECORD).is_file():
            write_sums(directory, record)

    return seal


def _seal_all(directory: Path) -> Callable[[], None]:
    """Return a function that corrects the digests of all files of a run."""
    record = read_record(directory)

    def seal() -> None:
        files = {name: sha256_file(directory / name) for name in record.files if (directory / name).is_file()}
        data = replace(record, files=record.files | files)
        (directory / RECORD).write_text(json.dumps(data.to_dict()))
        write_sums(directory, data)

    return seal


# ---------------------------------------------------------------------- runs


def run_directory(root: Path) -> Parser:
    store = _store(root)
    directory = store.local.find(key_of("level 0"))
    assert directory is not None
    files = sorted(path for path in directory.rglob("*") if path.is_file())

    def read() -> object:
        record = store.local.load(key_of("level 0"))
        for name in record.files:
            store.local.open_file(record.key, name)
        return record

    # Without record.json, a directory is no committed run: it cannot be named.
    return Parser(root, files, read, has_digest=True)


def record(root: Path) -> Parser:
    directory = _store(root).local.find(key_of("level 0"))
    assert directory is not None
    return Parser(directory, [directory / RECORD], lambda: read_record(directory), _seal(directory))


def list_of_deleted(root: Path) -> Parser:
    whole = {
        "a.safetensors": AbsentFile("0" * 64, 1, "2026-01-01T00:00:00+00:00", "gc"),
        "b": AbsentFile("1", 0, "", ""),
    }
    write_absent_files(root, whole)
    return Parser(root, [root / ABSENT_FILES], lambda: read_absent_files(root))


def index(root: Path) -> Parser:
    store = _store(root)
    newest_local(store)
    return Parser(root, [root / INDEX], lambda: newest_local(store), optional=True, has_digest=True)


def delivery_note(root: Path) -> Parser:
    store = LineageStore("sqlite:///x", _store(root).local)
    directory = store.local.find(key_of("dense"))
    assert directory is not None
    (path := root / DELIVERED / f"{directory.name}.json").parent.mkdir()
    path.write_text(json.dumps({"sqlite:///x": {"other": "1" * 32}, "sqlite:///old/x": "2" * 32}))

    def read() -> None:
        assert isinstance(store.delivered(directory), str | None)

    return Parser(root, [path], read, optional=True)


def origin_note(root: Path) -> Parser:
    store = _store(root)
    record = store.local.load(key_of("dense"))
    remember_origin(store.local, record, ("1" * 32, "2" * 32))
    path = root / IMPORTED / f"{store.local.path(record).name}.json"

    def read() -> None:
        for found in (origin_of(store.local, store.local.path(record)), *origins(store.local).values()):
            assert all(isinstance(one, str) for one in found)
        find_node(store, record.key)

    return Parser(root, [path], read, optional=True)


def draft(root: Path) -> Parser:
    store = _store(root)
    config = {"search": {"num_levels": 3, "lr": 0.1, "data": {"name": "digits"}}, "level": 1}
    unfinished = Unfinished(root, "level", "0" * 64, "L01", [key_of("level 0")])
    with unfinished.claimed(config):
        pass
    other = Unfinished(root, "level", "1" * 64, "L01")

    def read() -> None:
        other.nearly_the_same(config | {"level": 1, "kind": "x"})
        list(find_garbage(store, Policy("tickets", older_than_days=0)))
        unfinished_searches(store.local, newest_local(store))

    return Parser(root, [unfinished.directory / "draft.json"], read, optional=True)


def claim(root: Path) -> Parser:
    one = Unfinished(root, "level", "0" * 64, "L01")
    with one.claimed({"a": 1}):
        content = (one.directory / "owner.json").read_bytes()
    (one.directory / "owner.json").write_bytes(content)

    def read() -> None:
        Unfinished(root, "level", "1" * 64, "L01").nearly_the_same({"a": 2})
        path = one.directory / "owner.json"
        damaged = path.read_bytes() if path.is_file() else None
        try:
            with one.claimed({}):
                assert one._is_mine()
        except OSError:
            assert path.is_dir()  # it cannot be replaced
        finally:
            if damaged is not None:
                path.write_bytes(damaged)

    return Parser(root, [one.directory / "owner.json"], read, optional=True)


def status(root: Path) -> Parser:
    path = root / "status.json"
    path.write_text(json.dumps({"status": "running", "host": "h", "pid": 1, "started": "1", "argv": ["a"]}))
    return Parser(root, [path], lambda: isinstance(_is_anothers(path), bool), optional=True)


def state(root: Path) -> Parser:
    """Read a state with an earlier one beside it. A damaged state never counts."""
    one = Unfinished(root, "level", "0" * 64, "L01")
    paths = []
    with one.claimed({}):
        for epoch in (1, 2):
            one.save(HEADER | {"epoch": epoch}, {"a": torch.full((8,), float(epoch))}, (epoch, 0))
            (path,) = one.directory.glob(f"state-{epoch:06}-*")
            paths.append((path, path.read_bytes()))
    paths[0][0].write_bytes(paths[0][1])

    def read() -> None:
        header, tensors = one.newest(_check_header) or ({}, {})
        assert header["epoch"] in (1, 2) and tensors["a"].tolist() == [header["epoch"]] * 8

    return Parser(root, [paths[1][0]], read, optional=True)


def state_of_damaged_bytes(root: Path) -> Parser:
    """Read a state whose name has the digest of its damaged bytes."""
    one = Unfinished(root / "runs", "level", "0" * 64, "L01")
    with one.claimed({}):
        one.save(HEADER, {"a": torch.ones(8), "b": torch.ones(2, 2)}, (2, 0))
    (path,) = one.directory.glob("state-*")
    path.rename(root / "state")

    def read() -> None:
        for old in one.directory.glob("state-*"):
            old.unlink()
        if (root / "state").is_file():
            content = (root / "state").read_bytes()
            name = f"state-000002-000000000-{hashlib.sha256(content).hexdigest()}.safetensors"
            (one.directory / name).write_bytes(content)
        one.newest(_check_header)

    return Parser(root, [root / "state"], read, optional=True)


def _bundle(root: Path) -> Path:
    store = _store(root / "ours")
    nodes = [find_node(store, key_of(name)) for name in ("level 0", "dense")]
    write_bundle(store, nodes, root / "bundle")
    shutil.rmtree(root / "ours")
    return root / "bundle"


def bundle(root: Path) -> Parser:
    directory = _bundle(root)
    names = ("level", "training", "search")
    runs = [next((directory / "nodes").glob(f"{name}-*")) for name in names]
    files = [path for run in runs for path in run.iterdir() if path.name != SUMS]

    def read() -> object:
        shutil.rmtree(root / "theirs", ignore_errors=True)
        store = LineageStore(None, LocalNodes(root / "theirs"))
        list(import_bundle(store, directory))
        return store.local.records()

    # SHA256SUMS of a bundle is for people.
    return Parser(directory, [directory / "bundle.json", *files], read, has_digest=True)


def ticket_settings(root: Path) -> Parser:
    """Read the settings of a ticket. The digests of its record are valid."""
    store = LineageStore(None, LocalNodes(root))
    made = _made(root)
    directory = made.directory("L00")
    world = cast(World, SimpleNamespace(share_text=lambda text: text, on_main=lambda make: make()))
    asked = TicketConfig(ticket=made.keys["L00"], runs=root)
    read = functools.partial(resolve_ticket, world, store, asked, ("level",))
    return Parser(root, [directory / RECORD], read, _seal(directory), named=made.keys["L00"][:16])


def _made(root: Path) -> MadeSearch:
    config = small_config(Path("data"), num_levels=0)
    made = MadeSearch(LocalNodes(root), config, Architecture.built("resnet8", 10, 1, 8, 2), "0" * 64)
    made._root()
    made._level(0, Architecture.built("resnet8", 10, 1, 8, 2).theta_init(config.init_seed), None)
    return made


def verification(root: Path) -> Parser:
    """Verify a store of which any file is damaged. `verify` reports it and goes on."""
    store, made = LineageStore(None, LocalNodes(root)), _made(root)
    files = sorted(path for path in made.directory("L00").iterdir())

    def read() -> None:
        findings = verify(store)
        assert findings.checked["files"] > 0
        assert all(remark.what.isprintable() for remark in (*findings.problems, *findings.notes))

    return Parser(root, files, read, optional=True)


def verification_sealed(root: Path) -> Parser:
    """Verify a store of which any file is damaged, and has its new digest."""
    parser = verification(root)
    directory = parser.files[0].parent
    files = [path for path in parser.files if path.name not in (RECORD, SUMS)]
    return replace(parser, files=files, seal=_seal_all(directory))


def determinants(root: Path) -> Parser:
    made = _made(root)
    directory = made.directory("L00")
    path = root / DETERMINANTS
    shutil.copy(directory / DETERMINANTS, path)
    return Parser(root, [path], lambda: bool(read_model(path, path.with_name)))


# ---------------------------------------------------------------------- tensors


def mask(root: Path) -> Parser:
    path = root / "a.safetensors"
    signed_mask(1).save(path, {"level": 1})

    def read() -> object:
        found = SignedMask.load(path)
        return found.digest, found.metadata

    return Parser(root, [path], read, has_digest=True)


def mask_1(root: Path) -> Parser:
    """Read a mask of format 1, which has no digest."""
    parser = mask(root)
    as_format_1(parser.files[0])
    return replace(parser, has_digest=False)


def mask_of_run(root: Path) -> Parser:
    """Read a mask of format 1 in the directory of a run, whose record has its digest."""
    parser = mask_1(root)
    record = {"files": {parser.files[0].name: sha256_file(parser.files[0])}}
    (root / RECORD).write_text(json.dumps(record))
    return replace(parser, has_digest=True)


def network(root: Path) -> Parser:
    path = root / CHECKPOINT
    checkpoint(1).save(path)
    return Parser(root, [path], lambda: Checkpoint.load(path).digest)


def network_of_run(root: Path) -> Parser:
    parser = network(root)
    (root / RECORD).write_text(json.dumps({"files": {CHECKPOINT: sha256_file(root / CHECKPOINT)}}))
    read = parser.read

    def both() -> object:
        harness.load_checkpoint(root / CHECKPOINT)
        return read(), sha256_tensors(read_network(root / CHECKPOINT).tensors)

    return replace(parser, read=both, has_digest=True)


def correct_images(root: Path) -> Parser:
    path = root / "correct.safetensors"
    save_correct(path, {"test": torch.arange(13) % 3 == 0, "points": torch.ones(2, 13, dtype=torch.bool)})
    return Parser(root, [path], lambda: {name: one.tolist() for name, one in load_correct(path).items()})


def planes(root: Path) -> Parser:
    """Compare the tensors of two files."""
    for name in ("a", "b"):
        checkpoint(1).save(root / f"{name}.safetensors")
    return Parser(root, [root / "a.safetensors"], lambda: same_tensors(root / "a.safetensors", root / "b.safetensors"))


def foreign_network(root: Path, form: str) -> Parser:
    path = root / "net.pth"
    if form == "safetensors":
        save_file(T, path)
    else:
        torch.save({"state_dict": T, "epoch": 3}, path, _use_new_zipfile_serialization=form == "zip")

    def read() -> object:
        return {name: tensor.tolist() for name, tensor in read_network(path).tensors.items()}

    return Parser(root, [path], read, has_digest=form == "zip")


def pickle_of_network(root: Path) -> Parser:
    """Read a torch file whose pickle is damaged, but has the right checksum."""
    content = io.BytesIO()
    torch.save({"state_dict": T, "epoch": 3}, content)
    with zipfile.ZipFile(content) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    (root / "data.pkl").write_bytes(members[name])

    def read() -> None:
        pickled = (root / "data.pkl").read_bytes() if (root / "data.pkl").is_file() else b""
        with zipfile.ZipFile(root / "net.pth", "w") as archive:
            for member, data in (members | {name: pickled}).items():
                archive.writestr(member, data)
        read_network(root / "net.pth")

    return Parser(root, [root / "data.pkl"], read)


# ---------------------------------------------------------------------- studies


def plan(root: Path) -> Parser:
    shutil.copy(STUDIES / "alpha.toml", root / "alpha.toml")
    return Parser(root, [root / "alpha.toml"], lambda: bool(read_study(root / "alpha.toml", SCALES)))


def chain(root: Path) -> Parser:
    tags, files = {"level": "01"}, {DETERMINANTS: "0" * 64}
    line = RunLine("a", "0" * 64, "a run", (("1" * 64, "trained-from"),), tags, files, {}, "c0ffee", 1, 2)
    right = np.packbits(np.arange(20) >= 2)
    images = base64.b64encode(right.tobytes()).decode()
    lines = (
        replace(line, metrics={"test_error_percent": 10.0}, correct=images, num_images=20),
        replace(line, name="lmc", metrics={"barrier": CURVE.barrier}, curve=CURVE),
    )
    path = root / "dense-t1.json"
    ChainRecords("s", "0" * 64, "dense-t1", "resnet8", {"commit": "c"}, "cpu", ("no problem",), lines).save(path)
    return Parser(root, [path], lambda: [run.right() for run in ChainRecords.load(path).runs] and None)


def barrier(root: Path) -> Parser:
    path = root / "barrier.json"
    path.write_text(json.dumps(CURVE.to_dict()))
    return Parser(root, [path], lambda: BarrierCurve.load(path).reversed().barrier and None)


def page(root: Path) -> Parser:
    spread = {"mean": 90.0, "sd": 0.5, "count": 3}
    point = {"level": 1, "density": 0.8, "curve": "retrain (aws)", "accuracy_percent": spread}
    verdict = {"difference": 1.0, "interval": [0.5, 1.5], "word": "shown"}
    claim = {"first": "a", "second": "b", "by_density": [{"density": 0.8, "difference": 1.0}], "verdict": verdict}
    curve = {"question": "stability", "curve": "a", "error_percent": [10.0, 12.0, 11.0]}
    curve |= {"barrier_above_line": 1.0, "barrier": 1.0, "floor": 0.0}
    numbers = {"figure": "fig3", "epsilon": 1.0, "points": [point], "claims": [claim], "barriers": {"a": curve}}
    path = root / "results.json"
    path.write_text(json.dumps(numbers | {"norm": {"aws": [{"scale_mean": 1.0, "scale_sd": 0.1}]}}))
    return Parser(root, [path], lambda: bool(read_numbers(path)))


PARSERS: dict[str, Callable[[Path], Parser]] = {
    "run directory": run_directory,
    "record": record,
    "list of deleted files": list_of_deleted,
    "index": index,
    "delivery note": delivery_note,
    "origin note": origin_note,
    "draft": draft,
    "claim": claim,
    "status": status,
    "state": state,
    "state of damaged bytes": state_of_damaged_bytes,
    "bundle": bundle,
    "settings": ticket_settings,
    "verify": verification,
    "verify, digests new": verification_sealed,
    "determinants": determinants,
    "mask": mask,
    "mask of format 1": mask_1,
    "mask of a run": mask_of_run,
    "checkpoint": network,
    "checkpoint of a run": network_of_run,
    "correct images": correct_images,
    "planes": planes,
    **{f"network, {form}": functools.partial(foreign_network, form=form) for form in ("zip", "legacy", "safetensors")},
    "network, its pickle": pickle_of_network,
    "study plan": plan,
    "study records": chain,
    "barrier": barrier,
    "numbers of a page": page,
}


SLOW = ("verify", "verify, digests new")  # they read whole networks
ORDINARY_PARSERS = [name for name in PARSERS if name not in SLOW]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the heartbeat of a claim from another host."""
    monkeypatch.setattr(harness.runs.unfinished, "DEAD_AFTER_SECONDS", 0.0)


@pytest.fixture(scope="module")
def parsers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Parser]:
    @functools.cache
    def make(name: str) -> Parser:
        root = tmp_path_factory.mktemp("damaged") / "input"
        root.mkdir()
        return PARSERS[name](root)

    return make


@pytest.mark.parametrize("name", ORDINARY_PARSERS)
def test_every_kind_of_damage_is_one_line_that_names_the_file(parsers, name: str) -> None:
    every_kind(parsers(name))


@pytest.mark.parametrize("name", ORDINARY_PARSERS)
def test_random_damage_is_one_line_that_names_the_file(parsers, name: str) -> None:
    attack(parsers(name), ORDINARY)


def test_no_changed_byte_of_a_torch_file_gives_other_values(parsers) -> None:
    """The directory of a zip archive has no checksum. Its attributes decide whether torch reads an entry."""
    parser = parsers("network, zip")
    (path,) = parser.files
    whole, values = path.read_bytes(), parser.read()
    for at in range(whole.index(b"PK\x01\x02"), len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        check(parser, values)
    path.write_bytes(whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARSERS)
def test_much_random_damage_is_one_line_that_names_the_file(parsers, name: str) -> None:
    every_kind(parsers(name))
    attack(parsers(name), settings(THOROUGH, max_examples=500) if name in SLOW else THOROUGH)
