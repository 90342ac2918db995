"""Cache the searchable fields of all local runs in one file.

Listings then need not open thousands of records. The cache is rebuilt from the records and can be deleted at any time.
`list` prints its content. All other code that shows a run reads its record and checks the digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from harness.common.files import read_bounded, write_atomically
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.nodes.local_files import RECORD, LocalNodes, read_record
from harness.lineage.nodes.record import KINDS, LineageRecord, Parent

INDEX = ".index.json"
_FORMAT = 3
_MOST_BYTES = 2**30


class IndexedRun(NamedTuple):
    """Searchable fields of one local run, as plain JSON values."""

    directory: str
    changed_ns: int
    """Modification time of record.json in ns. With `size` it tells whether the entry is stale."""
    size: int
    """Size of record.json in bytes."""
    key: str
    kind: str
    started_ms: int
    nest_key: str | None
    parent_keys: str
    """Keys of all parents, separated by spaces."""
    # The following fields are None if the run has no such tag, metric or setting.
    method: str | None
    model: str | None
    network: str | None
    """Model name, with its width if that is not the default."""
    used_as: str | None
    """Kind of final training, such as signed_mask."""
    level: str | None
    density: float | None
    experiment: str | None
    # The following fields are shown, but not searched.
    name: str
    finished_ms: int
    parent_relations: str
    """Relations to the parents, separated by spaces."""
    tags: dict[str, str]
    metrics: dict[str, float]
    """Last values."""
    files: dict[str, str]
    """SHA-256 by file name."""

    @classmethod
    def of(cls, directory: str, stamp: tuple[int, int], record: LineageRecord) -> IndexedRun:
        """Return the entry of a run.

        `stamp` is the (modification time in ns, size in bytes) of its record.json.
        """
        # A record can hold values of any type: only a text names an experiment.
        search = record.config.get("search")
        experiment = search.get("experiment") if isinstance(search, dict) else None
        changed_ns, size = stamp
        return cls(
            directory=directory,
            changed_ns=changed_ns,
            size=size,
            key=record.key,
            kind=record.kind,
            started_ms=record.started_ms,
            nest_key=record.nest_key,
            parent_keys=" ".join(parent.key for parent in record.parents),
            method=record.tags.get("method"),
            model=record.tags.get("model"),
            network=record.tags.get("network"),
            used_as=record.tags.get("kind_of_training"),
            level=record.tags.get("level"),
            density=record.last_metrics().get("density"),
            experiment=experiment if isinstance(experiment, str) else None,
            name=record.name,
            finished_ms=record.finished_ms,
            parent_relations=" ".join(parent.relation for parent in record.parents),
            tags=record.tags,
            metrics=record.last_metrics(),
            files=record.files,
        )

    def summary(self, root: str) -> RunSummary:
        """Return the summary of the run, without reading its record."""
        pairs = zip(self.parents, self.parent_relations.split(), strict=True)
        return RunSummary(
            key=self.key,
            kind=self.kind,
            name=self.name,
            parents=tuple(Parent(key, relation) for key, relation in pairs),
            nest_key=self.nest_key,
            root=root,
            tags=self.tags,
            metrics=self.metrics,
            files=self.files,
            run_id=None,
            status="LOCAL",
            started_ms=self.started_ms,
            finished_ms=self.finished_ms,
        )

    @property
    def parents(self) -> list[str]:
        return self.parent_keys.split()


class LocalIndex:
    """Map keys to local runs.

    A run with an unreadable record is skipped with a warning.
    """

    def __init__(self, nodes: LocalNodes) -> None:
        self.nodes = nodes
        self.entries: dict[str, IndexedRun] = {entry.key: entry for entry in _up_to_date(nodes.directory)}

    def record(self, key: str) -> LineageRecord:
        """Return a run's record after checking its digest.

        Raises:
            ValueError: The record was altered.
        """
        return read_record(self.nodes.directory / self.entries[key].directory)

    def top(self, key: str) -> str:
        """Return the key of the root above a run.

        Only local runs are followed. If a run on the way up exists only in MLflow, return the key of that run.
        """
        passed = {key}
        while (entry := self.entries.get(key)) is not None and entry.nest_key is not None:
            key = entry.nest_key
            if key in passed:
                break
            passed.add(key)
        return key


def _up_to_date(directory: Path) -> list[IndexedRun]:
    """Return the entries of all local runs.

    New and changed records are read, and the cache file is updated.
    """
    stamps = _stamps(directory)
    entries = [entry for entry in _read(directory / INDEX) if stamps.get(entry.directory) == entry[1:3]]
    known, fresh = {entry.directory for entry in entries}, []
    for name in sorted(stamps.keys() - known):
        try:
            fresh.append(IndexedRun.of(name, stamps[name], read_record(directory / name)))
        except (ValueError, OSError) as error:
            warnings.warn(str(error), stacklevel=4)
    if fresh:
        _write(directory / INDEX, entries + fresh)
    return entries + fresh


def _stamps(directory: Path) -> dict[str, tuple[int, int]]:
    """Return the stamp of every committed run's record.json by directory name.

    A stamp is (modification time in ns, size in bytes).
    """
    stamps = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as found:
        for place in found:
            if place.name.split("-")[0] in KINDS:
                with contextlib.suppress(OSError):
                    status = os.stat(f"{place.path}/{RECORD}")
                    stamps[place.name] = status.st_mtime_ns, status.st_size
    return stamps


def _read(path: Path) -> list[IndexedRun]:
    """Return the cached entries.

    The list is empty if the file is missing, damaged, edited or of another format. So the content of an entry is what
    this version wrote, and needs no further checks.
    """
    try:
        head, _, rows = read_bounded(path, _MOST_BYTES).partition(b"\n")
        if json.loads(head) != _head(rows):
            return []
        return [IndexedRun(*row) for row in json.loads(rows)]
    except (OSError, ValueError, TypeError, RecursionError):
        return []


def _head(rows: bytes) -> dict[str, Any]:
    return {"format": _FORMAT, "sha256": hashlib.sha256(rows).hexdigest()}


def _write(path: Path, entries: list[IndexedRun]) -> None:
    with contextlib.suppress(OSError):  # the cache is optional, so read-only directories can be listed too
        rows = json.dumps(entries, separators=(",", ":")).encode()
        write_atomically(path, json.dumps(_head(rows)).encode() + b"\n" + rows, durable=False)
