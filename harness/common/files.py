"""Write files atomically, look up processes, and define crash points for tests."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

FAULT_VARIABLE = "HARNESS_KILL_AT"
"""Environment variable that selects a crash point, for tests (see `reach`)."""
FAULT_POINTS = (
    "step",
    "state-written",
    "state-renamed",
    "node-written",
    "node-committed",
    "database-made",
    "run-created",
    "files-sent",
    "before-finished",
    "split-written",
)
_reached: dict[str, int] = {}


def fsync(path: Path) -> None:
    """Flush a file's content, or a directory's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes, *, durable: bool = True, fault_point: str | None = None) -> None:
    """Replace the content of `path` atomically.

    Readers see either the old or the new content.

    Args:
        path: The file. Its directory must exist.
        data: The complete new content.
        durable: Flush content and name to disk before returning. Set it to False for files that can be rebuilt.
        fault_point: Name of a crash point between writing and renaming, for tests (see `reach`).

    Raises:
        OSError: The disk is full or not writable. The old content is unchanged.
    """
    # Write a temporary file in the same directory, then rename it.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        if fault_point is not None:
            reach(fault_point)
        os.replace(temporary, path)
        if durable:
            fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def process_exists(pid: int) -> bool:
    """Return whether this machine has a process with this ID."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # the process belongs to another user
        return True
    return True


def reach(point: str) -> None:
    """Kill this process with SIGKILL if a test selected `point`.

    HARNESS_KILL_AT is `point:n`. The process dies when it reaches `point` for the n-th time (default: the first).
    """
    wanted = os.environ.get(FAULT_VARIABLE)
    if wanted is None:
        return
    name, _, number = wanted.partition(":")
    if name == point:
        _reached[point] = _reached.get(point, 0) + 1
        if _reached[point] == int(number or 1):
            os.kill(os.getpid(), signal.SIGKILL)
