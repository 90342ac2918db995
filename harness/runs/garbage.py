"""What can be deleted from a directory of runs, and what it would cost: `tools/lineage.py gc`.

Three things: what interrupted commits and finished trainings left behind; states of trainings that nobody goes on
with; and checkpoints of levels that nothing refers to, if a policy gives them up. Never a record, a signed mask, a
θ_init, a comparison or a final training. MLflow's copies are left alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from harness.common.files import fsync, process_exists
from harness.lineage.browse.find import newest
from harness.lineage.nodes.absent_files import AbsentFile, read_absent_files, write_absent_files
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.nodes.local_files import check_digest, read_record
from harness.lineage.nodes.record import CHECKPOINT, KINDS
from harness.lineage.store import LineageStore
from harness.runs.unfinished import BusyError, Unfinished

SECONDS_PER_DAY = 86_400
FOREIGN_DAYS = 1.0
"""What another host left half-written is taken for dead after so long: its processes cannot be asked here."""

KeepLevels = Literal["all", "tickets"] | int

_TEMPORARY = re.compile(rf"\.tmp-(?:{'|'.join(KINDS)})-[0-9a-f]{{16}}\.(?P<host>.+)\.(?P<process>\d+)")
_FETCHED = re.compile(r"\.tmp-fetch-\w+")
_MAKING = re.compile(rf"\.making-(?P<kind>{'|'.join(KINDS)})-(?P<digits>[0-9a-f]{{16}})")


@dataclass(frozen=True)
class Policy:
    """What is given up.

    `keep_levels` "all" keeps every level's checkpoint; "tickets" those of level 0, of the deepest levels and of levels
    that something was made from or compared; a number N every N-th as well. The others can no longer be trained from,
    compared or proved in full; a search goes on from its deepest level all the same. `older_than_days` gives up states
    of unfinished runs that nobody touched for so long (None: never), and spares younger checkpoints.
    """

    keep_levels: KeepLevels = "all"
    older_than_days: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.keep_levels, int) and self.keep_levels < 1:
            raise ValueError(f"--keep-levels {self.keep_levels}: give all, tickets, or N ≥ 1 to keep every N-th level")
        if self.older_than_days is not None and self.older_than_days < 0:
            raise ValueError(f"--older-than {self.older_than_days}: days cannot be negative")

    def __str__(self) -> str:
        age = "" if self.older_than_days is None else f" --older-than {self.older_than_days:g}"
        return f"gc --keep-levels {self.keep_levels}{age}"


@dataclass(frozen=True)
class Garbage:
    """One thing that can be deleted: a directory, or a node's checkpoint."""

    path: Path
    num_bytes: int
    name: str
    """Of the run."""
    why: str


def find_garbage(store: LineageStore, policy: Policy) -> list[Garbage]:
    """Return what `policy` allows to delete among the local nodes; nothing is changed.

    What MLflow knows counts as well: a level from which another machine made something is needed. ConnectionError when
    the server that was asked for is away.
    """
    directory = store.local.directory
    if not directory.is_dir():
        return []
    found = [*_temporaries(directory), *_states(directory, policy)]
    if policy.keep_levels != "all":
        found += _checkpoints(store, policy)
    return found


def delete_garbage(items: Iterable[Garbage], policy: Policy) -> Iterator[tuple[Garbage, str | None]]:
    """Delete one after another and yield (item, None), or (item, why it stays)."""
    for item in items:
        try:
            if item.path.name == CHECKPOINT:
                _bury(item.path, policy)
            elif _MAKING.fullmatch(item.path.name):
                _discard(item.path)
            else:
                shutil.rmtree(item.path)
        except (ValueError, OSError) as error:
            yield item, str(error)
        else:
            yield item, None


# ---------------------------------------------------------------------- what interrupted processes left


def _temporaries(directory: Path) -> Iterator[Garbage]:
    for path in sorted(directory.iterdir()):
        match = _TEMPORARY.fullmatch(path.name)
        if match and match["host"] == socket.gethostname():
            dead = not process_exists(int(match["process"]))
        elif match or _FETCHED.fullmatch(path.name):
            dead = _days_since(path) > FOREIGN_DAYS
        else:
            continue
        if dead:
            yield Garbage(path, _num_bytes(path), path.name, "left by an interrupted commit or download")


def _states(directory: Path, policy: Policy) -> Iterator[Garbage]:
    """Yield what is left of runs that are finished, and of those that nobody goes on with."""
    for path in sorted(directory.iterdir()):
        match = _MAKING.fullmatch(path.name)
        if match is None:
            continue
        name = _draft(path).get("name", path.name)
        if (directory / f"{match['kind']}-{match['digits']}" / "record.json").is_file():
            yield Garbage(path, _num_bytes(path), name, "the run is finished")
        elif policy.older_than_days is not None and (days := _days_since(path)) > policy.older_than_days:
            why = f"unfinished, and untouched for {days:.0f} days; the same launch would begin this run anew"
            yield Garbage(path, _num_bytes(path), name, why)


def _discard(path: Path) -> None:
    """Delete the directory of an unfinished run; BusyError if it is being made."""
    match = _MAKING.fullmatch(path.name)
    assert match is not None
    unfinished = Unfinished(path.parent, match["kind"], match["digits"], _draft(path).get("name", path.name))
    with unfinished.claimed({}):
        unfinished.discard()
    if path.exists():
        raise BusyError(f"{path} is being looked at by another launch")


def _draft(path: Path) -> dict[str, str]:
    try:
        draft = json.loads((path / "draft.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return draft if isinstance(draft, dict) else {}


# ---------------------------------------------------------------------- checkpoints


def _checkpoints(store: LineageStore, policy: Policy) -> Iterator[Garbage]:
    nodes = newest(store, limit=None)
    needed = _needed(nodes, store.local.directory)
    for node in sorted(nodes, key=lambda node: (node.root or "", node.name)):
        directory = store.local.find(node.key)
        if node.kind != "level" or directory is None or not (directory / CHECKPOINT).is_file():
            continue
        if not node.tags.get("level", "").isdecimal():  # somebody edited it: nothing is known, so it stays
            continue
        level = int(node.tags["level"])
        every = policy.keep_levels if isinstance(policy.keep_levels, int) else None
        if node.key in needed or level == 0 or (every and level % every == 0):
            continue
        days = (time.time() - node.finished_ms / 1000) / SECONDS_PER_DAY
        if policy.older_than_days is None or days > policy.older_than_days:
            path = directory / CHECKPOINT
            why = "the next level is made, and nothing else was made from this one"
            yield Garbage(path, path.stat().st_size, node.name, why)


def _needed(nodes: list[RunSummary], directory: Path) -> set[str]:
    """Return the keys of levels whose checkpoint something needs, or may need to go on."""
    needed: set[str] = set()
    continued: set[str] = set()
    for node in nodes:
        for parent in node.parents:
            (continued if node.kind == "level" else needed).add(parent.key)
    needed |= {node.key for node in nodes if node.key not in continued}  # a search goes on from its deepest level
    for path in directory.glob(".making-*"):
        draft = _draft(path)
        if draft and "parents" not in draft:  # of an earlier version: it may go on from anything
            return {node.key for node in nodes}
        needed |= set(draft.get("parents", ()))
    return needed


def _bury(path: Path, policy: Policy) -> None:
    """Delete a node's checkpoint and list it as absent; ValueError if it is not what was recorded."""
    directory = path.parent
    digest = read_record(directory).files[path.name]
    try:
        check_digest(path, digest)  # the list of absent files must not cover up what verify would find
    except ValueError as error:
        raise ValueError(f"{error}; `python tools/lineage.py verify` says more") from None
    when = datetime.now().astimezone().isoformat(timespec="seconds")
    absent = AbsentFile(digest, path.stat().st_size, when, str(policy))
    write_absent_files(directory, {**read_absent_files(directory), path.name: absent})
    path.unlink()
    fsync(directory)


def _days_since(path: Path) -> float:
    """Days since anything in a directory changed."""
    times = [path.stat().st_mtime, *(inside.stat().st_mtime for inside in path.rglob("*"))]
    return (time.time() - max(times)) / SECONDS_PER_DAY


def _num_bytes(path: Path) -> int:
    return sum(os.lstat(inside).st_size for inside in path.rglob("*") if inside.is_file())
