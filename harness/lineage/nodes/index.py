"""A list of the local nodes that can be read at once: thousands of records take a minute, this takes a moment.

The file is made from the records and can be deleted at any time. What it says serves to find nodes; a node that is
shown is read from its own record, digest checked.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from pathlib import Path
from typing import NamedTuple

from harness.common.files import write_atomically
from harness.lineage.nodes.local_files import RECORD, LocalNodes, read_record
from harness.lineage.nodes.record import KINDS, LineageRecord

INDEX = ".index.json"
_FORMAT = 2


class IndexedRun(NamedTuple):
    """The fields that find a local run; plain values, so that thousands are read in a moment."""

    directory: str
    changed_ns: int
    size: int
    key: str
    kind: str
    started_ms: int
    nest_key: str | None
    parent_keys: str
    """Separated by spaces."""
    method: str | None
    model: str | None
    network: str | None
    """With its width, if that is not the usual one."""
    used_as: str | None
    level: str | None
    density: float | None
    experiment: str | None

    @classmethod
    def of(cls, directory: str, stamp: tuple[int, int], record: LineageRecord) -> IndexedRun:
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
        )

    @property
    def parents(self) -> list[str]:
        return self.parent_keys.split()


class LocalIndex:
    """The local nodes by key; a node whose record cannot be read is named in a warning and hides no other."""

    def __init__(self, nodes: LocalNodes) -> None:
        self.nodes = nodes
        self.entries: dict[str, IndexedRun] = {entry.key: entry for entry in _up_to_date(nodes.directory)}

    def record(self, key: str) -> LineageRecord:
        """Return a node's record, its digest checked; ValueError when it was altered."""
        return read_record(self.nodes.directory / self.entries[key].directory)

    def top(self, key: str) -> str:
        """Return the key of the topmost node this one is shown under, as far up as local nodes lead.

        Where a node in between is in MLflow alone, this is that node's key.
        """
        passed = {key}
        while (entry := self.entries.get(key)) is not None and entry.nest_key is not None:
            key = entry.nest_key
            if key in passed:
                break
            passed.add(key)
        return key


def _up_to_date(directory: Path) -> list[IndexedRun]:
    stamps = _stamps(directory)
    entries = [entry for entry in _read(directory / INDEX) if stamps.get(entry.directory) == entry[1:3]]
    known, fresh = {entry.directory for entry in entries}, []
    for name in sorted(stamps.keys() - known):
        try:
            fresh.append(IndexedRun.of(name, stamps[name], read_record(directory / name)))
        except ValueError as error:
            warnings.warn(str(error), stacklevel=4)
    if fresh:
        _write(directory / INDEX, entries + fresh)
    return entries + fresh


def _stamps(directory: Path) -> dict[str, tuple[int, int]]:
    """Return {directory name: (time of change in ns, bytes) of its record} of every committed node."""
    stamps = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as found:
        for place in found:
            if place.name.split("-")[0] in KINDS:
                with contextlib.suppress(OSError):
                    status = os.stat(f"{place.path}/{RECORD}")
                    stamps[place.name] = status.st_mtime_ns, status.st_size
    return stamps


def _read(path: Path) -> list[IndexedRun]:
    """Return what the file says; nothing when there is none, or it is damaged, foreign or of another version."""
    try:
        data = json.loads(path.read_bytes())
        return [IndexedRun(*row) for row in data["nodes"]] if data["format"] == _FORMAT else []
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def _write(path: Path, entries: list[IndexedRun]) -> None:
    with contextlib.suppress(OSError):  # only a shortcut: a directory that cannot be written can still be listed
        text = json.dumps({"format": _FORMAT, "nodes": entries}, separators=(",", ":"))
        write_atomically(path, text.encode(), durable=False)
