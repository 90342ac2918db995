"""Find and delete files in a runs directory that are no longer needed (`tickets lineage gc`).

Leftovers of interrupted commits, interrupted downloads and finished trainings can always be deleted. A policy can also
allow the deletion of saved states of abandoned trainings, and of checkpoints of levels that no other run needs.
Records, signed masks, θ_init, comparisons and final trainings are never deleted. Copies in MLflow are not touched.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from harness.common.files import fsync, read_json
from harness.common.process import Process
from harness.common.program import command
from harness.lineage.browse.find import newest
from harness.lineage.nodes.absent_files import AbsentFile, read_absent_files, write_absent_files
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.nodes.local_files import check_digest, read_record
from harness.lineage.nodes.record import CHECKPOINT, KINDS
from harness.lineage.store import LineageStore
from harness.runs.unfinished import BusyError, Unfinished

SECONDS_PER_DAY = 86_400
FOREIGN_DAYS = 1.0
"""Age after which partial files of another host or container count as abandoned: its processes cannot be checked."""

KeepLevels = Literal["all", "tickets"] | int

_TEMPORARY = re.compile(rf"\.tmp-(?:{'|'.join(KINDS)})-[0-9a-f]{{16}}\.(?P<process>.+)")
_FETCHED = re.compile(r"\.tmp-fetch-\w+")
_MAKING = re.compile(rf"\.making-(?P<kind>{'|'.join(KINDS)})-(?P<digits>[0-9a-f]{{16}})")


@dataclass(frozen=True)
class Policy:
    """Rules for deletion.

    A level without its checkpoint can no longer be trained from, compared or fully verified. Its search can still be
    continued, because the checkpoint of its deepest level is kept.
    """

    keep_levels: KeepLevels = "all"
    """Levels whose checkpoints are kept.

    * "all": every level.
    * "tickets": level 0, the deepest levels, and levels from which final trainings or comparisons were made.
    * A number N: as "tickets", and every N-th level.
    """
    older_than_days: float | None = None
    """Minimum age in days. None: saved states are never deleted, and checkpoints at any age.

    The age of a state is the time since its last change. The age of a checkpoint is the time since its run finished.
    """

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
    """A directory or checkpoint that can be deleted."""

    path: Path
    num_bytes: int
    name: str
    """Name of the run."""
    why: str
    """Reason why it can be deleted."""


def find_garbage(store: LineageStore, policy: Policy) -> list[Garbage]:
    """List the local files that `policy` allows to delete, without deleting any.

    Runs known only to MLflow count, too: a level from which another machine made a run is kept.

    Raises:
        ConnectionError: The tracking server is unreachable.
    """
    directory = store.local.directory
    if not directory.is_dir():
        return []
    found = [*_temporaries(directory), *_states(directory, policy)]
    if policy.keep_levels != "all":
        found += _checkpoints(store, policy)
    return found


def delete_garbage(items: Iterable[Garbage], policy: Policy) -> Iterator[tuple[Garbage, str | None]]:
    """Delete the items one by one. Yield (item, None) for each, or (item, error message) if it could not be deleted."""
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


# ---------------------------------------------------------------------- leftovers of interrupted processes


def _temporaries(directory: Path) -> Iterator[Garbage]:
    """Yield partial commits of dead processes.

    Downloads, and commits of other hosts, count once they are older than FOREIGN_DAYS.
    """
    for path in sorted(directory.iterdir()):
        match = _TEMPORARY.fullmatch(path.name)
        maker = Process.of_suffix(match["process"]) if match else None
        if maker is None and not _FETCHED.fullmatch(path.name):
            continue
        alive = maker.alive if maker else None
        if alive is False or (alive is None and _days_since(path) > FOREIGN_DAYS):
            yield Garbage(path, _num_bytes(path), path.name, "left by an interrupted commit or download")


def _states(directory: Path, policy: Policy) -> Iterator[Garbage]:
    """Yield the state directories of finished runs, and of runs not touched for `older_than_days`."""
    for path in sorted(directory.iterdir()):
        match = _MAKING.fullmatch(path.name)
        if match is None:
            continue
        name = _draft(path).get("name", path.name)
        if (directory / f"{match['kind']}-{match['digits']}" / "record.json").is_file():
            yield Garbage(path, _num_bytes(path), name, "the run is finished")
        elif policy.older_than_days is not None and (days := _days_since(path)) > policy.older_than_days:
            why = f"unfinished, and untouched for {days:.0f} days; without it, the same launch restarts this run"
            yield Garbage(path, _num_bytes(path), name, why)


def _discard(path: Path) -> None:
    """Delete the directory of an unfinished run. Raise BusyError if a launch is making this run."""
    match = _MAKING.fullmatch(path.name)
    assert match is not None
    unfinished = Unfinished(path.parent, match["kind"], match["digits"], _draft(path).get("name", path.name))
    with unfinished.claimed({}):
        unfinished.discard()
    if path.exists():
        raise BusyError(f"another launch is accessing {path}")


def _draft(path: Path) -> dict[str, Any]:
    try:
        draft = read_json(path / "draft.json")
    except (OSError, ValueError):
        return {}
    return draft if isinstance(draft, dict) else {}


# ---------------------------------------------------------------------- checkpoints


def _checkpoints(store: LineageStore, policy: Policy) -> Iterator[Garbage]:
    """Yield the checkpoints of levels that no run needs and that `policy` does not keep."""
    nodes = newest(store, limit=None)
    needed = _needed(nodes, store.local.directory)
    for node in sorted(nodes, key=lambda node: (node.root or "", node.name)):
        directory = store.local.find(node.key)
        if node.kind != "level" or directory is None or not (directory / CHECKPOINT).is_file():
            continue
        if not node.tags.get("level", "").isdecimal():  # an edited tag: the level is unknown, so keep it
            continue
        level = int(node.tags["level"])
        every = policy.keep_levels if isinstance(policy.keep_levels, int) else None
        if node.key in needed or level == 0 or (every and level % every == 0):
            continue
        days = (time.time() - node.finished_ms / 1000) / SECONDS_PER_DAY
        if policy.older_than_days is None or days > policy.older_than_days:
            path = directory / CHECKPOINT
            why = "the next level is finished, and no other run was made from this one"
            yield Garbage(path, path.stat().st_size, node.name, why)


def _needed(nodes: list[RunSummary], directory: Path) -> set[str]:
    """Return the keys of runs whose checkpoint another run needs, or a search needs to continue."""
    # Phase: collect parents of finished runs. A level whose only children are levels is not needed by them.
    needed: set[str] = set()
    continued: set[str] = set()
    for node in nodes:
        for parent in node.parents:
            (continued if node.kind == "level" else needed).add(parent.key)
    needed |= {node.key for node in nodes if node.key not in continued}  # the deepest level, to continue its search

    # Phase: collect parents of unfinished runs.
    for path in directory.glob(".making-*"):
        draft = _draft(path)
        parents = draft.get("parents") if draft else []
        # An earlier version wrote none, and a damaged draft may have others: they are unknown, so keep all.
        if not isinstance(parents, list) or not all(isinstance(key, str) for key in parents):
            return {node.key for node in nodes}
        needed |= set(parents)
    return needed


def _bury(path: Path, policy: Policy) -> None:
    """Delete a run's checkpoint and list it as absent. Raise ValueError if its digest is not the recorded one."""
    directory = path.parent
    digest = read_record(directory).files[path.name]
    try:
        check_digest(path, digest)  # an altered file must stay visible to `verify`
    except ValueError as error:
        raise ValueError(f"{error}; `{command('lineage verify')}` reports details") from None
    when = datetime.now().astimezone().isoformat(timespec="seconds")
    absent = AbsentFile(digest, path.stat().st_size, when, str(policy))
    write_absent_files(directory, {**read_absent_files(directory), path.name: absent})
    path.unlink()
    fsync(directory)


def _days_since(path: Path) -> float:
    """Return the days since the last change of a directory or of a file in it."""
    times = [path.stat().st_mtime, *(inside.lstat().st_mtime for inside in path.rglob("*"))]
    return (_now(path.parent) - max(times)) / SECONDS_PER_DAY


def _now(directory: Path) -> float:
    """Return the time by the clock of a file server, or by the own clock if that is earlier.

    With an own clock that is days ahead, the files of other hosts would look abandoned.
    """
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            return min(time.time(), os.fstat(file.fileno()).st_mtime)
    except OSError:  # a read-only directory: nothing can be deleted there
        return time.time()


def _num_bytes(path: Path) -> int:
    return sum(os.lstat(inside).st_size for inside in path.rglob("*") if inside.is_file())
