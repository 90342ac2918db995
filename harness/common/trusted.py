"""The rule for executing Python files of users.

A run and a prepared data set keep a copy of the Python file that defines their network or data. A store, a directory of
data or a bundle can come from another person. So its Python file is executed only if this user trusts its content:

- A command that names a file trusts the content, and remembers its SHA-256 (`remember`).
- Other commands need a remembered SHA-256, or --trust-code (`require_trust`). The path of a file does not count.

Each remembered digest is a line of `signed-tickets/trusted` in the user's state directory: XDG_STATE_HOME, or
~/.local/state. Delete a line to withdraw the trust. In a launch of several processes, rank 0 decides for all.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from harness.common.escape import for_terminal, one_line
from harness.common.files import NO_LOCKS, read_bounded, write_atomically

_log = logging.getLogger(__name__)

_MOST_BYTES = 1 << 24
_LOCK_SECONDS = 10.0
_LINE = re.compile(rb"^([0-9a-f]{64})  ", re.MULTILINE)
_HEAD = b"# Python files that you have named in a command of signed-tickets: SHA-256, time, path.\n"
_named: set[str] = set()
"""Digests of the files that this process has named. They count even where no state directory can be written."""
_said: set[str] = set()


class UntrustedCodeError(ValueError):
    """A Python file must not be executed. The message names it, its copy, and the option that trusts it."""


def remember(path: Path, content: bytes) -> None:
    """Trust a file that the user has named, in this process and in later commands.

    Without a writable state directory, a warning says once that later commands need --trust-code.

    Args:
        path: The file, for the reader of the list.
        content: Its content.
    """
    digest = sha256(content).hexdigest()
    _named.add(digest)
    try:
        file = _file()
        if digest in _remembered(file):
            return
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(file):
            # Another launch may have written since. All its lines stay.
            before = _content(file) or _HEAD
            if digest in _digests(before):
                return
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            line = f"{digest}  {now}  {for_terminal(str(path.absolute()))}\n"
            before += b"" if before.endswith(b"\n") else b"\n"
            write_atomically(file, before + line.encode(), mode=0o600)
    except (OSError, ValueError, NotImplementedError) as error:
        _say_once(f"cannot remember that {path.name} is yours ({_reason(error)}); later commands need --trust-code")


def is_trusted(digest: str) -> bool:
    """Return whether this user has named a file with this SHA-256."""
    if digest in _named:
        return True
    try:
        return digest in _remembered(_file())
    except (OSError, ValueError) as error:
        _say_once(f"cannot read which Python files are yours ({_reason(error)}); use --trust-code")
        return False


def require_trust(what: str, name: str, digest: str, copy: str, *, trust_code: bool) -> None:
    """Raise UntrustedCodeError unless the user has named this file, or allows its execution.

    Args:
        what: The object that the file makes, for the message.
        name: The file's name, as recorded.
        digest: SHA-256 of its content.
        copy: The copy to read first, for the message.
        trust_code: The user's option --trust-code.
    """
    if trust_code or is_trusted(digest):
        return
    message = (
        f"{what} is made by {name} (sha256 {digest[:12]}…), a Python file that you have named in no command, so it is "
        f"not executed unasked; read {copy}, then give --trust-code (in Python: trust_code=True)"
    )
    raise UntrustedCodeError(one_line(message))  # the names can be a stranger's


# ------------------------------------------------------------------ the list


def _file() -> Path:
    """Return the path of the list.

    Raises:
        FileNotFoundError: The user has no home directory.
    """
    # The XDG specification ignores relative paths.
    given = Path(os.environ.get("XDG_STATE_HOME", ""))
    if given.is_absolute():
        return given / "signed-tickets" / "trusted"
    home = Path(os.path.expanduser("~"))
    if not home.is_absolute():
        raise FileNotFoundError(errno.ENOENT, "you have no home directory; set XDG_STATE_HOME")
    return home / ".local" / "state" / "signed-tickets" / "trusted"


def _content(file: Path) -> bytes:
    """Return the content of the list. A missing list is empty.

    Raises:
        PermissionError: Another user can write to it.
    """
    try:
        status = file.stat()
    except FileNotFoundError:
        return b""
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise PermissionError(errno.EPERM, f"other users can write to {file}")
    return read_bounded(file, _MOST_BYTES)


def _digests(content: bytes) -> set[str]:
    return {digest.decode() for digest in _LINE.findall(content)}


def _remembered(file: Path) -> set[str]:
    return _digests(_content(file))


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Lock the list. A file system without locks is no obstacle: a lost line costs one --trust-code."""
    from filelock import FileLock

    lock = FileLock(file.with_name(f"{file.name}.lock"), timeout=_LOCK_SECONDS, mode=0o600, fallback_to_soft=False)
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        if (getattr(error, "errno", None) or errno.ENOSYS) not in NO_LOCKS or isinstance(error, TimeoutError):
            raise
    try:
        yield
    finally:
        lock.release()


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "another process holds the lock of the list"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        _log.warning(message)
