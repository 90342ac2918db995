"""Files that survive a crash, processes that may have left some behind, and points at which a test crashes."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

FAULT_VARIABLE = "HARNESS_KILL_AT"
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
    """Force a file's content, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes, *, durable: bool = True, fault_point: str | None = None) -> None:
    """Replace the content of `path` in one step: readers see the old bytes or the new ones, never a part.

    Args:
        path: The file. Its directory must exist.
        data: The whole new content.
        durable: Force content and name to the disk before returning. Leave it out for files that can be rebuilt.
        fault_point: Name of a crash point between writing and renaming, for tests (see `reach`).

    Raises:
        OSError: The disk is full or not writable. The old content is unchanged.
    """
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
    """Say whether this machine has a process with this number."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's process
        return True
    return True


def reach(point: str) -> None:
    """Die here of SIGKILL if HARNESS_KILL_AT is `point:n` and this is the n-th time; else nothing."""
    wanted = os.environ.get(FAULT_VARIABLE)
    if wanted is None:
        return
    name, _, number = wanted.partition(":")
    if name == point:
        _reached[point] = _reached.get(point, 0) + 1
        if _reached[point] == int(number or 1):
            os.kill(os.getpid(), signal.SIGKILL)
