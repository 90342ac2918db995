"""Bundles: directories that share runs and all their ancestors, to be imported and verified in another store.

`bundle.json` lists the runs and the SHA-256 of each record. A record lists the SHA-256 of each file. A bundle may omit
checkpoints. Records do not change then, and another file lists the omitted ones. The reader of a bundle does not trust
it: it validates every name and digest, and refuses links.

An exported run (`harness.lineage.sharing`) is a bundle of one requested run. Its checkpoint is `model.safetensors` at
the top of the directory, and its signed mask has a copy there.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from harness.common.digest import sha256_file
from harness.common.escape import for_terminal, one_line
from harness.common.files import fsync, make_parent, read_json
from harness.common.process import Process
from harness.lineage.browse.find import Named, ancestors, find_node
from harness.lineage.nodes.absent_files import ABSENT_FILES, AbsentFile, read_absent_files, write_absent_files
from harness.lineage.nodes.contents import differing, suspects
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
    parse_record,
    read_record,
    write_sums,
)
from harness.lineage.nodes.origin import remember_origin
from harness.lineage.nodes.record import CHECKPOINT, KINDS, SIGNED_MASK, THETA_INIT, LineageRecord, check_file_name
from harness.lineage.store import LineageStore

MANIFEST, README, NODES = "bundle.json", "README.md", "nodes"
MODEL = "model.safetensors"
"""Checkpoint of the requested run, at the top of an exported directory."""
FORMAT = "harness.bundle/1"
CHECKPOINTS = (CHECKPOINT, THETA_INIT)
TOP_FILES = {CHECKPOINT: MODEL, SIGNED_MASK: SIGNED_MASK}
"""Files of the requested run that an exported directory has at its top, with their names there."""
_MOST_BYTES = 64 << 20  # of a file of text
_IS_THE_MODEL = f"the exported directory has it as {MODEL}"


@dataclass(frozen=True)
class BundledRun:
    """A run of a bundle. `run_ids` are its MLflow run IDs in all stores that held it, newest first."""

    directory: str
    key: str
    kind: str
    name: str
    record_sha256: str
    run_ids: tuple[str, ...]

    @classmethod
    def from_dict(cls, data: object) -> BundledRun:
        """Parse an item of a manifest; ValueError if it is malformed."""
        # Phase: check fields and types.
        names = ("directory", "key", "kind", "name", "record_sha256", "run_ids")
        if not isinstance(data, dict) or set(data) != set(names) or not isinstance(data["run_ids"], list):
            raise ValueError(f"an item of {MANIFEST} must have exactly the fields {', '.join(names)}")
        texts = [data[name] for name in names[:-1]] + data["run_ids"]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"an item of {MANIFEST} holds something other than text")

        # Phase: check the values. The directory's name follows from kind and key.
        item = cls(**{**data, "run_ids": tuple(data["run_ids"])})
        good = item.kind in KINDS and all(re.fullmatch("[0-9a-f]{64}", text) for text in (item.key, item.record_sha256))
        good = good and item.directory == f"{NODES}/{item.kind}-{item.key[:16]}"
        if not good or not all(re.fullmatch("[0-9a-f]{32}", run_id) for run_id in item.run_ids):
            raise ValueError(f"an item of {MANIFEST} is not a run: {item!r:.300}")
        return item

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "run_ids": list(self.run_ids)}


@dataclass(frozen=True)
class Imported:
    """The outcome of importing one run: new, there already, or completed with omitted files."""

    item: BundledRun
    directory: Path
    outcome: str


def with_ancestors(store: LineageStore, nodes: Iterable[RunSummary]) -> list[RunSummary]:
    """Return runs and all their ancestors, each after its parents; LookupError if one is missing."""
    found: dict[str, RunSummary] = {}
    for node in nodes:
        for other in [*ancestors(store, node), node]:
            found.setdefault(other.key, other)
    for node in list(found.values()):
        for key in [*(parent.key for parent in node.parents), *([node.nest_key] if node.nest_key else [])]:
            if key not in found:
                raise LookupError(f"{node.name} has the parent {key[:16]}…, which is neither local nor in MLflow")
            if node.run_id is not None and found[key].other_run_id in node.parent_run_ids:
                raise LookupError(
                    f"{node.name} in MLflow was made from run {found[key].other_run_id}, but the local run with its "
                    "key has other contents: give --runs another directory"
                )
    return list(found.values())


def write_bundle(
    store: LineageStore, nodes: Iterable[Named], out: Path, *, checkpoints: bool = False
) -> list[BundledRun]:
    """Write a bundle of runs and all their ancestors to a new directory, atomically.

    Args:
        store: The store of the runs.
        nodes: The runs.
        out: The new directory.
        checkpoints: Include checkpoints and θ_init, which are by far the largest files.

    Returns:
        The items of the bundle.

    Raises:
        FileExistsError: `out` exists.
        LookupError: An ancestor is missing.
        ValueError: A file was altered.
    """
    asked = [find_node(store, node) for node in nodes]
    with new_directory(out) as temporary:
        items = write_runs(store, asked, temporary, checkpoints=checkpoints)
        keys = [node.key for node in asked]
        write_manifest(temporary, items, keys, _readme(temporary, items, keys))
    return items


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """Yield a temporary directory, and rename it to `out` at the end.

    Raises:
        FileExistsError: `out` exists.
        OSError: Its parent is not writable.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists: give a new directory")
    make_parent(out)
    temporary = out.parent / f".tmp-{out.name}.{Process.current().suffix}"
    try:
        temporary.mkdir()
        yield temporary
        os.rename(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_runs(
    store: LineageStore, asked: Iterable[RunSummary], out: Path, *, checkpoints: bool, at_top: str | None = None
) -> list[BundledRun]:
    """Write the directories of runs and all their ancestors below `out`, and return their items.

    Args:
        store: The store of the runs.
        asked: The runs.
        out: The directory of the bundle.
        checkpoints: Include checkpoints and θ_init.
        at_top: Key of a run whose checkpoint and signed mask are also files at the top, as in an exported run.

    Raises:
        LookupError: An ancestor is missing.
        ValueError: A file was altered, or the run `at_top` has no checkpoint.
    """
    items = []
    for node in with_ancestors(store, asked):
        directory = out / NODES / f"{node.kind}-{node.key[:16]}"
        directory.mkdir(parents=True)
        items.append(_write_node(store, node, directory, checkpoints=checkpoints, at_top=node.key == at_top))
    return items


def _write_node(
    store: LineageStore, node: RunSummary, directory: Path, *, checkpoints: bool, at_top: bool
) -> BundledRun:
    """Write one run of a bundle, and return its item."""
    # Phase: copy the record.
    with store.open_file_of(node, RECORD) as path:
        shutil.copyfile(path, directory / RECORD)  # the original bytes, because their digest is recorded
    record = parse_record(directory / RECORD)
    absent = _unavailable(store, node, record)

    # Phase: copy the files of an exported run to the top. Its checkpoint has no second copy below.
    if at_top:
        for name in TOP_FILES.keys() & record.files.keys():
            copy = directory.parents[1] / TOP_FILES[name]
            with store.open_file_of(node, name) as path:
                shutil.copyfile(path, copy)
            check_digest(copy, record.files[name])
        absent[CHECKPOINT] = _left_out(record.files[CHECKPOINT], _IS_THE_MODEL)

    # Phase: copy the other files.
    for name, digest in record.files.items():
        if name in CHECKPOINTS and not checkpoints:
            absent.setdefault(name, _left_out(digest, "left out of a bundle; one made with --checkpoints has it"))
        if name not in absent:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            with store.open_file_of(node, name) as path:
                shutil.copyfile(path, directory / name)

    # Phase: list the omitted files, and check the digests.
    if absent:
        write_absent_files(directory, absent)
    write_sums(directory, record)
    check_files(directory, record)
    digest = sha256_file(directory / RECORD)
    return BundledRun(f"{NODES}/{directory.name}", record.key, record.kind, record.name, digest, node.all_run_ids)


def _unavailable(store: LineageStore, node: RunSummary, record: LineageRecord) -> dict[str, AbsentFile]:
    """Return the files that were deliberately deleted or omitted, locally and in MLflow."""
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


def write_manifest(directory: Path, items: list[BundledRun], asked: list[str], readme: str) -> None:
    """Write the manifest, the README, and the digests of all files in the format of `sha256sum -c`."""
    data = {"format": FORMAT, "asked": asked, "nodes": [item.to_dict() for item in items]}
    (directory / MANIFEST).write_bytes(json_bytes(data))
    (directory / README).write_text(readme, encoding="utf-8")
    sums = [f"{sha256_file(directory / name)}  {name}\n" for name in file_names(directory)]
    (directory / SUMS).write_text("".join(sums))
    for path in (*directory.rglob("*"), directory):
        fsync(path)


def _readme(directory: Path, items: list[BundledRun], asked: list[str]) -> str:
    """Return the README of a bundle."""
    rows, absent = [], []
    for item in items:
        mask = f"`{item.directory}/{SIGNED_MASK}`" if (directory / item.directory / SIGNED_MASK).is_file() else "–"
        name = for_terminal(item.name).replace("|", "/").replace("`", "'")
        rows.append(f"| `{name}`{' **requested**' if item.key in asked else ''} | {item.kind} | {mask} |")
        absent += [f"{item.directory}/{name}" for name in read_absent_files(directory / item.directory)]
    left_out = "The bundle is complete."
    if absent:
        left_out = (
            f"The bundle deliberately omits {len(absent)} of the files, mostly checkpoints. "
            f"`{ABSENT_FILES}` in a run's directory lists them with the reason. "
            "`verify` skips the checks that need them."
        )
    first = next((item for item in items if item.key in asked and item.run_ids), None)
    example = first.run_ids[0] if first else asked[0]
    return _README.format(rows="\n".join(rows), left_out=left_out, example=example, count=len(items))


_README = """# Runs of signed-tickets, with all their ancestors

{count} runs. Each is a directory with its files, its settings and its record. The record, `record.json`, has the seeds,
code version, parents and metrics, and the SHA-256 of every file. {left_out}

| run | kind | signed mask |
|---|---|---|
{rows}

Check the files for corruption:

    sha256sum -c --quiet SHA256SUMS

Import the runs into your own store, to verify and browse them like your own runs. The store is MLFLOW_TRACKING_URI, or
else sqlite:///mlflow.db in the working directory. The original run IDs stay valid:

    tickets lineage import THIS_DIRECTORY
    tickets lineage verify {example}

Or load a signed mask directly:

    from harness import load_signed_mask
    mask = load_signed_mask("THIS_DIRECTORY/nodes/…/signed_mask.safetensors")
    mask.apply_(model)

If the bundle was requested for one level or final training, the path of the directory is enough.

All files are safetensors, JSON, images or text. Loading them runs no code.
"""


# ---------------------------------------------------------------------- import


def is_bundle(directory: Path) -> bool:
    """Return whether a directory is a bundle or an exported run."""
    return (directory / MANIFEST).is_file()


def read_bundle(directory: Path) -> list[BundledRun]:
    """Return the items of a bundle; ValueError if it is malformed or has another format."""
    return _read_manifest(directory)[0]


def asked_keys(directory: Path) -> tuple[str, ...]:
    """Return the keys of the requested runs of a bundle; ValueError as in `read_bundle`."""
    return _read_manifest(directory)[1]


def _read_manifest(directory: Path) -> tuple[list[BundledRun], tuple[str, ...]]:
    """Return the items of a bundle, and the keys of the requested runs."""
    # Phase: read the file.
    path = directory / MANIFEST
    if not path.is_file():
        raise ValueError(f"{directory} is not a bundle: it has no {MANIFEST}")
    try:
        data = read_json(_plain_file(directory, MANIFEST, _MOST_BYTES))
        found, nodes, asked = data["format"], data["nodes"], data.get("asked", [])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a list of runs: {error!r:.200}") from None
    if found != FORMAT:
        raise ValueError(f"{path} has format {found!r:.60}; this version of the harness reads {FORMAT}")
    if not isinstance(nodes, list) or not isinstance(asked, list):
        raise ValueError(f"{path} is not a list of runs")

    # Phase: check the items, and that the requested runs are among them.
    try:
        items = [BundledRun.from_dict(node) for node in nodes]
    except ValueError as error:
        raise ValueError(f"{path}: {one_line(error)}") from None
    if len({item.directory for item in items}) < len(items):
        raise ValueError(f"{path} lists a run twice")
    known = [item.key for item in items]
    if any(key not in known for key in asked):
        raise ValueError(f"{path} requests a run that it does not list")
    return items, tuple(asked)


def requested_run(directory: Path) -> BundledRun:
    """Return the one run that a bundle was made for.

    If several were requested, it is the only one that no other run of the bundle was made from.

    Raises:
        LookupError: There are several. The message lists them.
        ValueError: The bundle is malformed.
    """
    items, asked = _read_manifest(directory)
    if len(asked) == 1:
        return next(item for item in items if item.key == asked[0])
    made_from = {parent.key for item in items for parent in _record_of(directory, item).parents}
    last = [item for item in items if item.key not in made_from and item.kind != "search"]
    if len(last) != 1:
        names = for_terminal(", ".join(f"{item.directory} ({item.name})" for item in last[:5])) or "none"
        raise LookupError(f"{directory} is a bundle of several results; give the directory of one: {names}")
    return last[0]


def requested_record(directory: Path) -> LineageRecord:
    """Return the record of the one run that a bundle was made for; errors as in `requested_run`."""
    return _record_of(directory, requested_run(directory))


def bundled_file(directory: Path, name: str) -> Path:
    """Return the path of a file of the one run that a bundle was made for, after checking its digest.

    Raises:
        LookupError: The bundle was made for several runs, or the run has no such file.
        ValueError: The file was altered or left out, or a link or name leaves the bundle.
    """
    # Phase: read the record.
    item = requested_run(directory)
    record = _record_of(directory, item)
    if name not in record.files:
        names = ", ".join(sorted(record.files))
        raise LookupError(f"{for_terminal(record.name)} has no file {name!r}; it has: {names}")

    # Phase: find the file.
    absent = _absent_of(directory, item, record)
    if name not in absent:
        return check_digest(_plain_file(directory, f"{item.directory}/{name}"), record.files[name])
    if name == CHECKPOINT and (found := _top_file(directory, MODEL, record.files[name])) is not None:
        return found
    if absent[name].why == _IS_THE_MODEL:
        raise ValueError(f"{directory} has no {MODEL}, the network of this export: copy or download that file, too")
    raise ValueError(for_terminal(f"{directory}: {name} of {record.name} was {absent[name]}"))


def _record_of(directory: Path, item: BundledRun) -> LineageRecord:
    """Return the record of an item after checking its digest."""
    path = _plain_file(directory, f"{item.directory}/{RECORD}", _MOST_BYTES)
    record = parse_record(check_digest(path, item.record_sha256))
    if (record.key, record.kind) != (item.key, item.kind):
        raise ValueError(f"{path} is the record of another run, {record.kind} {record.key[:16]}…")
    return record


def _absent_of(directory: Path, item: BundledRun, record: LineageRecord) -> dict[str, AbsentFile]:
    """Return the files that an item lacks on purpose. A file at the top of the bundle does not count as present."""
    place = directory / item.directory
    if (place / ABSENT_FILES).exists() or (place / ABSENT_FILES).is_symlink():
        _plain_file(directory, f"{item.directory}/{ABSENT_FILES}", _MOST_BYTES)
    return absent_files(place, record)


def _top_file(directory: Path, name: str, digest: str) -> Path | None:
    """Return the path of a file at the top of an exported run, after checking its digest; None if it is not there."""
    path = directory / name
    return check_digest(_plain_file(directory, name), digest) if path.exists() or path.is_symlink() else None


def check_bundle(directory: Path) -> None:
    """Check all records, digests and names of a bundle. Nothing is written.

    Raises:
        ValueError: A file was altered or is missing, or a link or name leaves the bundle.
    """
    items, asked = _read_manifest(directory)
    for item in items:
        _check_item(directory, item, at_top=asked == (item.key,))


def import_bundle(store: LineageStore, directory: Path) -> Iterator[Imported]:
    """Import the runs of a bundle as local runs, and yield the outcome of each.

    The whole bundle is checked before the first write. Each run is committed atomically, so an interrupted import
    resumes. Existing runs are kept, and get the files that they lack.

    Raises:
        ValueError: A file was altered, a link or name leaves the bundle, or a local run with the same key differs.
    """
    # Phase: check the whole bundle.
    items, asked = _read_manifest(directory)
    checked = {item.key: _check_item(directory, item, at_top=asked == (item.key,)) for item in items}
    records = {key: record for key, (record, _) in checked.items()}
    known = {item.key: store.local.find(item.key) for item in items}
    for item in items:
        _check_against_own(store, checked[item.key][1], item, known[item.key], records)

    # Phase: import run by run.
    for item in items:
        own, (record, files) = known[item.key], checked[item.key]
        remember_origin(store.local, record, item.run_ids)
        if own is None:
            yield Imported(item, _bring(store, directory, files, record, item), "new")
        elif added := _complete(store, own, files, record):
            yield Imported(item, own, f"completed with {', '.join(added)}")
        else:
            yield Imported(item, own, "there already")


def _check_item(directory: Path, item: BundledRun, *, at_top: bool) -> tuple[LineageRecord, dict[str, Path]]:
    """Return the record of an item, and the paths of its files, after checking them.

    No file outside of the bundle is opened.

    Args:
        directory: The bundle.
        item: The run.
        at_top: Look for its checkpoint and a copy of its signed mask at the top of the bundle, too.
    """
    record = _record_of(directory, item)
    absent = _absent_of(directory, item, record)
    files = {name: _plain_file(directory, f"{item.directory}/{name}") for name in record.files if name not in absent}
    for name in files:
        check_file(directory / item.directory, record, name)
    if at_top:
        for name, top in TOP_FILES.items():
            if name in record.files and (found := _top_file(directory, top, record.files[name])) is not None:
                files.setdefault(name, found)
    return record, files


def _check_against_own(
    store: LineageStore,
    files: Mapping[str, Path],
    item: BundledRun,
    own: Path | None,
    records: dict[str, LineageRecord],
) -> None:
    """Raise ValueError if a run differs from the local one with its key, or a parent is missing."""
    # Phase: compare with the local run.
    record = records[item.key]
    taken = store.local.path(record)
    if own is None and taken.exists():
        raise ValueError(
            f"{taken} exists and belongs to another run; move it away, or import into another directory (--runs)"
        )
    if own is not None:
        mine = read_record(own)
        other = differing(
            suspects(mine.files, record.files),
            lambda name: nullcontext(check_file(own, mine, name)),
            lambda name: nullcontext(_present(files, record, name)),
        )
        if other:
            raise ValueError(
                f"{item.name} is already local with another {' and '.join(other)} under the same key: two machines or "
                "versions computed different bits. Nothing was imported. Import into another store instead "
                "(--runs, --tracking-uri)"
            )

    # Phase: find all parents.
    needed = [parent.key for parent in record.parents] + ([record.nest_key] if record.nest_key else [])
    for key in needed:
        if key not in records and store.local.find(key) is None and store.run_id_of(key) is None:
            raise ValueError(f"{item.name} has the parent {key[:16]}…, which is neither in the bundle nor local")


def _present(files: Mapping[str, Path], record: LineageRecord, name: str) -> Path:
    """Return the path of a checked file of a bundle; ValueError if the bundle omits it."""
    if name not in files:
        raise ValueError(f"the bundle omits {name} of {record.name}, so it cannot be compared with the local run")
    return files[name]


def _bring(
    store: LineageStore, directory: Path, files: Mapping[str, Path], record: LineageRecord, item: BundledRun
) -> Path:
    """Copy one run and commit it. The remains of an interrupted copy are removed first."""
    with store.local.room_for(record) as temporary:
        for name, path in {**files, RECORD: directory / item.directory / RECORD}.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, temporary / name)
        absent = _absent_of(directory, item, record)
        if absent := {name: file for name, file in absent.items() if name not in files}:
            write_absent_files(temporary, absent)
        return store.local.import_directory(temporary, item.record_sha256)


def _complete(store: LineageStore, own: Path, files: Mapping[str, Path], record: LineageRecord) -> list[str]:
    """Add the files that a local run deliberately lacks and the bundle has; return their names."""
    # Phase: choose the files.
    mine = read_record(own)
    lacking = absent_files(own, mine)
    added = [name for name in lacking if record.files.get(name) == mine.files[name] and name in files]
    if not added:
        return []

    # Phase: copy each file atomically, then update the list of absent files.
    with store.local.room_for(record) as temporary:
        for number, name in enumerate(added):
            copy = temporary / str(number)
            shutil.copyfile(files[name], copy)
            check_digest(copy, mine.files[name])
            fsync(copy)
            (own / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(copy, own / name)
            fsync((own / name).parent)  # durable before the list changes
    write_absent_files(own, {name: file for name, file in lacking.items() if name not in added})
    return added


def _plain_file(directory: Path, name: str, most_bytes: int | None = None) -> Path:
    """Return the path of a regular file below `directory`; ValueError if a part of the path is a link."""
    path = directory
    for part in check_file_name(name).split("/"):
        path = path / part
        if path.is_symlink():
            raise ValueError(f"{path} is a link; links are not allowed in a bundle")
    if not path.is_file():
        raise ValueError(f"{path} is missing, or not a file")
    if most_bytes is not None and path.stat().st_size > most_bytes:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes; at most {most_bytes:,} are read")
    return path
