"""Read files with bounds, write files atomically, and define crash points for tests."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import secrets
import signal
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MOST_JSON_BYTES = 2**28
"""Larger JSON files are refused."""
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""Error numbers of file systems that have no locks."""
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


def write_atomically(
    path: Path, data: bytes, *, durable: bool = True, fault_point: str | None = None, mode: int = 0o666
) -> None:
    """Replace the content of `path` atomically.

    Readers see either the old or the new content.

    A symbolic link stays, and its target is replaced. A FIFO or device also stays, and is written to. A FIFO without a
    reader is an error.

    Args:
        path: The file. Its directory must exist.
        data: The complete new content.
        durable: Flush content and name to disk before returning. Set it to False for files that can be rebuilt.
        fault_point: Name of a crash point between writing and renaming, for tests (see `reach`).
        mode: Permissions of the new content, without those of the umask.

    Raises:
        OSError: The disk is full or not writable. The old content is unchanged.
    """
    if path.exists() and not path.is_file():
        _write_in_place(path, data)
        return
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    # Write a temporary file in the same directory, then rename it.
    # Its name is random: processes of two containers can have the same number.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
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


def _write_in_place(path: Path, data: bytes) -> None:
    """Write to a FIFO or device. OSError for a FIFO without a reader: opening it would wait without end."""
    descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    with open(descriptor, "wb") as file:
        file.write(data)


def write_tensors(
    path: Path | str, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None, *, durable: bool = False
) -> None:
    """Write a safetensors file atomically, with the permissions of the user's umask.

    All tensor files are written here. `save_file` of safetensors creates files that only their owner can read. The
    bytes are the same.

    Args:
        path: The file. Its directory must exist.
        tensors: Contiguous tensors of torch, or arrays of NumPy, by name.
        metadata: Strings for the header. Use one key at most: several are written in random order.
        durable: Flush content and name to disk before returning.

    Raises:
        OSError: The disk is full or not writable. An existing file is unchanged.
    """
    # Prepared data are arrays. Preparing them must not import torch.
    are_arrays = all(type(tensor).__module__ == "numpy" for tensor in tensors.values())
    library = importlib.import_module("safetensors.numpy" if are_arrays else "safetensors.torch")
    content = library.save(dict(tensors), dict(metadata) if metadata else None)
    write_atomically(Path(path), content, durable=durable)


def make_parent(path: Path) -> None:
    """Create the directory of a new file or directory, and check that this user can write there.

    Raises:
        OSError: It cannot be created, or is not writable. The message is one line.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        is_file = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "a part of the path is a file" if is_file else error.strerror
        raise OSError(f"cannot write {path}: {reason}; give another place") from None


def read_bounded(path: Path, most: int) -> bytes:
    """Return the content of a regular file of limited size.

    Args:
        path: The file.
        most: Largest size in bytes.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a regular file, or it is larger. The message names the file.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for a writer
        raise ValueError(f"{path} is not a regular file; not read")
    if status.st_size > most:
        raise ValueError(f"{path} has {status.st_size:,} bytes; at most {most:,} are read")
    return path.read_bytes()


def read_json(path: Path, most: int = MOST_JSON_BYTES) -> Any:
    """Return the content of a JSON file of limited size.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not a regular file, too large, or not JSON. The message names the file.
    """
    content = read_bounded(path, most)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def refuse_pipe(path: Path | str) -> None:
    """Raise ValueError for a pipe, socket or device. Reading one could wait without end."""
    with contextlib.suppress(OSError):
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise ValueError(f"{path} is not a regular file; not read")


def is_special(path: Path) -> bool:
    """Return whether `path` is, or links to, something other than a regular file, such as a FIFO or /dev/null."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def write_without_waiting(path: Path, data: bytes) -> None:
    """Write to a FIFO or device in place. Without a reader, or with a full pipe, nothing is written.

    Raises:
        OSError: The path cannot be written, for example because it is a directory.
    """
    with contextlib.suppress(BlockingIOError, BrokenPipeError):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a FIFO without a reader
                return
            raise
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)


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
