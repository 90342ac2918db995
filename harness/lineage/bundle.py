"""A directory to give away: some runs with everything they came from, to be checked, imported and verified elsewhere.

bundle.json lists the nodes and the SHA-256 of each record; a record lists the SHA-256 of each file. Checkpoints may be
left out: the record stays as it is, so that what is there can still be checked, and a list says which files are absent.
Whoever reads a bundle believes neither its listing nor its links.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from harness.common.digest import sha256_file
from harness.common.escape import for_terminal
from harness.common.files import fsync
from harness.lineage.browse.find import Named, ancestors, find_node
from harness.lineage.nodes.absent_files import ABSENT_FILES, AbsentFile, read_absent_files, write_absent_files
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.nodes.local_files import (
    RECORD,
    SUMS,
    absent_files,
    check_digest,
    check_file,
    check_files,
    file_names,
    json_bytes,
    read_record,
    write_sums,
)
from harness.lineage.nodes.origin import remember_origin
from harness.lineage.nodes.record import CHECKPOINT, KINDS, SIGNED_MASK, THETA_INIT, LineageRecord, check_file_name
from harness.lineage.store import LineageStore

MANIFEST, README, NODES = "bundle.json", "README.md", "nodes"
FORMAT = "harness.bundle/1"
CHECKPOINTS = (CHECKPOINT, THETA_INIT)
RESULTS = (SIGNED_MASK, *CHECKPOINTS)
_MOST_BYTES = 64 << 20  # of a file of text


@dataclass(frozen=True)
class BundledRun:
    """One node of a bundle; `run_ids` are its names in the stores it has been in, the newest first."""

    directory: str
    key: str
    kind: str
    name: str
    record_sha256: str
    run_ids: tuple[str, ...]

    @classmethod
    def from_dict(cls, data: object) -> BundledRun:
        """Return the item that a manifest lists; ValueError on anything that is no such item."""
        names = ("directory", "key", "kind", "name", "record_sha256", "run_ids")
        if not isinstance(data, dict) or set(data) != set(names) or not isinstance(data["run_ids"], list):
            raise ValueError(f"an item of {MANIFEST} must have exactly the fields {', '.join(names)}")
        texts = [data[name] for name in names[:-1]] + data["run_ids"]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"an item of {MANIFEST} holds something other than text")
        item = cls(**{**data, "run_ids": tuple(data["run_ids"])})
        good = item.kind in KINDS and all(re.fullmatch("[0-9a-f]{64}", text) for text in (item.key, item.record_sha256))
        # the name of the directory follows from the rest: nothing is left to choose
        good = good and item.directory == f"{NODES}/{item.kind}-{item.key[:16]}"
        if not good or not all(re.fullmatch("[0-9a-f]{32}", run_id) for run_id in item.run_ids):
            raise ValueError(f"an item of {MANIFEST} is no node: {item!r:.300}")
        return item

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "run_ids": list(self.run_ids)}


@dataclass(frozen=True)
class Imported:
    """What became of one node of a bundle: new, there already, or completed with files that were left out before."""

    item: BundledRun
    directory: Path
    outcome: str


def with_ancestors(store: LineageStore, nodes: Iterable[RunSummary]) -> list[RunSummary]:
    """Return the nodes and everything they came from, each after that; LookupError when something is missing."""
    found: dict[str, RunSummary] = {}
    for node in nodes:
        for other in [*ancestors(store, node), node]:
            found.setdefault(other.key, other)
    for node in list(found.values()):
        for key in [*(parent.key for parent in node.parents), *([node.nest_key] if node.nest_key else [])]:
            if key not in found:
                raise LookupError(f"{node.name} came from node {key[:16]}…, which is neither local nor in MLflow")
    return list(found.values())


def write_bundle(
    store: LineageStore, nodes: Iterable[Named], out: Path, *, checkpoints: bool = False
) -> list[BundledRun]:
    """Write a bundle of `nodes` and all they came from to a new directory, whole or not at all; return its items.

    Raises FileExistsError when `out` is there, LookupError when an ancestor cannot be found, ValueError when a file was
    altered.
    """
    if out.exists():
        raise FileExistsError(f"{out} is there already: give a new directory")
    out.parent.mkdir(parents=True, exist_ok=True)
    asked = [find_node(store, node) for node in nodes]
    temporary = out.parent / f".tmp-{out.name}.{socket.gethostname()}.{os.getpid()}"
    try:
        items = []
        for node in with_ancestors(store, asked):
            directory = temporary / NODES / f"{node.kind}-{node.key[:16]}"
            directory.mkdir(parents=True)
            items.append(_write_node(store, node, directory, checkpoints=checkpoints))
        _write_manifest(temporary, items, [node.key for node in asked])
        os.rename(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return items


def _write_node(store: LineageStore, node: RunSummary, directory: Path, *, checkpoints: bool) -> BundledRun:
    with store.open_file_of(node, RECORD) as path:
        shutil.copyfile(path, directory / RECORD)  # its bytes, not what we would write today: they have a digest
    record = LineageRecord.from_json((directory / RECORD).read_bytes())
    absent = _unavailable(store, node, record)
    for name, digest in record.files.items():
        if name in CHECKPOINTS and not checkpoints:
            absent.setdefault(name, _left_out(digest, "left out of a bundle; one made with --checkpoints has it"))
        if name not in absent:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            with store.open_file_of(node, name) as path:
                shutil.copyfile(path, directory / name)
    if absent:
        write_absent_files(directory, absent)
    write_sums(directory, record)
    check_files(directory, record)
    run_ids = tuple(dict.fromkeys((*([node.run_id] if node.run_id else []), *node.origin_run_ids)))
    digest = sha256_file(directory / RECORD)
    return BundledRun(f"{NODES}/{directory.name}", record.key, record.kind, record.name, digest, run_ids)


def _unavailable(store: LineageStore, node: RunSummary, record: LineageRecord) -> dict[str, AbsentFile]:
    """Return the files that are not here on purpose, neither locally nor in MLflow."""
    local = store.local.find(node.key)
    absent = absent_files(local, record) if local is not None else {}
    if node.run_id is None:
        return absent
    gone = [name for name in node.absent if name in record.files and (local is None or name in absent)]
    why = "not in the store that the bundle was made from"
    return {name: absent.get(name) or _left_out(record.files[name], why) for name in gone}


def _left_out(digest: str, why: str) -> AbsentFile:
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    return AbsentFile(sha256=digest, num_bytes=0, deleted_at=now, why=why)


def _write_manifest(directory: Path, items: list[BundledRun], asked: list[str]) -> None:
    """Write the list of nodes, what to do with it, and the digests of all files in the form of `sha256sum -c`."""
    data = {"format": FORMAT, "asked": asked, "nodes": [item.to_dict() for item in items]}
    (directory / MANIFEST).write_bytes(json_bytes(data))
    (directory / README).write_text(_readme(directory, items, asked), encoding="utf-8")
    sums = [f"{sha256_file(directory / name)}  {name}\n" for name in file_names(directory)]
    (directory / SUMS).write_text("".join(sums))
    for path in (*directory.rglob("*"), directory):
        fsync(path)


def _readme(directory: Path, items: list[BundledRun], asked: list[str]) -> str:
    rows, absent = [], []
    for item in items:
        mask = f"`{item.directory}/{SIGNED_MASK}`" if (directory / item.directory / SIGNED_MASK).is_file() else "–"
        name = for_terminal(item.name).replace("|", "/").replace("`", "'")
        rows.append(f"| `{name}`{' **asked for**' if item.key in asked else ''} | {item.kind} | {mask} |")
        absent += [f"{item.directory}/{name}" for name in read_absent_files(directory / item.directory)]
    left_out = "Every file that the records list is here."
    if absent:
        left_out = (
            f"{len(absent)} files that the records list (checkpoints, mostly) are not here on purpose; "
            f"`{ABSENT_FILES}` in each node's directory says which and why. "
            "What follows from them cannot be proved from this bundle."
        )
    first = next((item for item in items if item.key in asked and item.run_ids), None)
    example = first.run_ids[0] if first else asked[0]
    return _README.format(rows="\n".join(rows), left_out=left_out, example=example, count=len(items))


_README = """# Runs of signed-tickets, with everything they came from

{count} nodes, each a directory with its files, its settings and its record (`record.json`: seeds, code version,
parents, metrics, and the SHA-256 of every file). {left_out}

| node | kind | signed mask |
|---|---|---|
{rows}

Check that nothing was altered on the way:

    sha256sum -c --quiet SHA256SUMS

Bring them into a store of your own, where they are verified and browsed like your own runs (MLFLOW_TRACKING_URI, or
sqlite:///mlflow.db in the working directory; run IDs of the origin keep naming them):

    python tools/lineage.py import THIS_DIRECTORY
    python tools/lineage.py verify {example}

Or use a signed mask as it is:

    from harness import load_signed_mask
    mask = load_signed_mask("THIS_DIRECTORY/nodes/…/signed_mask.safetensors")
    mask.apply_(model)

The files are safetensors, JSON, images and text; nothing in here is a program, and reading it runs none.
"""


# ---------------------------------------------------------------------- reading somebody else's


def read_bundle(directory: Path) -> list[BundledRun]:
    """Return what a bundle says it holds; ValueError when it is no bundle, or one of a newer format."""
    path = directory / MANIFEST
    if not path.is_file():
        raise ValueError(f"{directory} is no bundle: it has no {MANIFEST}")
    try:
        data = json.loads(_plain_file(directory, MANIFEST, _MOST_BYTES).read_bytes())
        found, nodes = data["format"], data["nodes"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is no list of nodes: {error}") from None
    if found != FORMAT:
        raise ValueError(f"{path} has format {found!r:.60}; this version of the harness reads {FORMAT}")
    if not isinstance(nodes, list):
        raise ValueError(f"{path} is no list of nodes")
    items = [BundledRun.from_dict(node) for node in nodes]
    if len({item.directory for item in items}) < len(items):
        raise ValueError(f"{path} lists a node twice")
    return items


def import_bundle(store: LineageStore, directory: Path) -> Iterator[Imported]:
    """Make the nodes of a bundle local ones, checking every digest, and yield what became of each.

    Nothing is written before all of it was checked; killed in the middle, whole nodes are there, and the same command
    goes on. A node that is there already stays; files that it had been given without are added.
    Raises ValueError when anything was altered, leads out of the bundle, or contradicts a node that is there.
    """
    items = read_bundle(directory)
    records = {item.key: _check_item(directory, item) for item in items}
    known = {item.key: store.local.find(item.key) for item in items}
    for item in items:
        _check_against_own(store, item, directory / item.directory, records[item.key], known[item.key], records)
    for item in items:
        own = known[item.key]
        remember_origin(store.local, records[item.key], item.run_ids)
        if own is None:
            yield Imported(item, _bring(store, directory / item.directory, records[item.key], item), "new")
        elif added := _complete(store, own, directory / item.directory, records[item.key]):
            yield Imported(item, own, f"completed with {', '.join(added)}")
        else:
            yield Imported(item, own, "there already")


def _check_item(directory: Path, item: BundledRun) -> LineageRecord:
    """Return the record of an item after checking all its files; nothing outside of the bundle is opened."""
    place = directory / item.directory
    path = _plain_file(directory, f"{item.directory}/{RECORD}", _MOST_BYTES)
    record = LineageRecord.from_json(check_digest(path, item.record_sha256).read_bytes())
    if (record.key, record.kind) != (item.key, item.kind):
        raise ValueError(f"{path} is the record of another node, {record.kind} {record.key[:16]}…")
    if (place / ABSENT_FILES).exists() or (place / ABSENT_FILES).is_symlink():
        _plain_file(directory, f"{item.directory}/{ABSENT_FILES}", _MOST_BYTES)
    absent = absent_files(place, record)
    for name in record.files:
        if name not in absent:
            _plain_file(directory, f"{item.directory}/{name}")
            check_file(place, record, name)
    return record


def _check_against_own(
    store: LineageStore,
    item: BundledRun,
    place: Path,
    record: LineageRecord,
    own: Path | None,
    records: dict[str, LineageRecord],
) -> None:
    """Refuse a bundle that contradicts what is here, or lacks what its nodes came from."""
    taken = store.local.path(record)
    if own is None and taken.exists():
        raise ValueError(f"{taken} is there and belongs to another node; move it away, or import elsewhere (--runs)")
    if own is not None:
        mine = read_record(own)
        other = [name for name in RESULTS if name in mine.files and mine.files[name] != record.files.get(name)]
        if other == [SIGNED_MASK] and _same_mask(own, place):
            other = []
        if other:
            raise ValueError(
                f"{item.name} is here already with another {' and '.join(other)}, though its key is the same: two "
                "machines or versions came to other bits. Nothing was imported; import into a store of its own "
                "(--runs, --tracking-uri)"
            )
    needed = [parent.key for parent in record.parents] + ([record.nest_key] if record.nest_key else [])
    for key in needed:
        if key not in records and store.local.find(key) is None and store.run_id_of(key) is None:
            raise ValueError(f"{item.name} came from node {key[:16]}…, which is neither in the bundle nor here")


def _same_mask(own: Path, place: Path) -> bool:
    """Return whether two directories of a run hold the same signed mask, be it in files of different formats.

    If a file is absent on purpose, the equal checkpoint decides.
    """
    from harness.masks import same_contents

    files = [directory / SIGNED_MASK for directory in (own, place)]
    return not all(file.is_file() for file in files) or same_contents(*files)


def _bring(store: LineageStore, place: Path, record: LineageRecord, item: BundledRun) -> Path:
    """Copy one node and commit it; a copy that was interrupted is removed first."""
    with store.local.room_for(record) as temporary:
        absent = absent_files(place, record)
        for name in [*record.files, RECORD, *([ABSENT_FILES] if absent else [])]:
            if name not in absent:
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(place / name, temporary / name)
        return store.local.import_directory(temporary, item.record_sha256)


def _complete(store: LineageStore, own: Path, place: Path, record: LineageRecord) -> list[str]:
    """Add files that the own node lacks on purpose and the bundle has; return their names."""
    mine = read_record(own)
    lacking, theirs = absent_files(own, mine), absent_files(place, record)
    added = [name for name in lacking if record.files.get(name) == mine.files[name] and name not in theirs]
    if not added:
        return []
    with store.local.room_for(record) as temporary:
        for number, name in enumerate(added):
            copy = temporary / str(number)
            shutil.copyfile(place / name, copy)
            check_digest(copy, mine.files[name])
            fsync(copy)
            (own / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(copy, own / name)
            fsync((own / name).parent)  # before the list says that the file is there
    write_absent_files(own, {name: file for name, file in lacking.items() if name not in added})
    return added


def _plain_file(directory: Path, name: str, most_bytes: int | None = None) -> Path:
    """Return the path of a regular file below `directory` that no link leads to; ValueError otherwise."""
    path = directory
    for part in check_file_name(name).split("/"):
        path = path / part
        if path.is_symlink():
            raise ValueError(f"{path} is a link; a bundle has none")
    if not path.is_file():
        raise ValueError(f"{path} is missing, or no file")
    if most_bytes is not None and path.stat().st_size > most_bytes:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes; at most {most_bytes:,} are read")
    return path
