"""The identity of a process: the one rule by which a recorded process counts as alive, dead or unknown.

A PID alone is no identity. Numbers are reused, and each container has its own. So a record also holds the start time,
the boot ID of the kernel and the PID namespace (Linux). Records of earlier versions have host name and PID only.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

_SUFFIX = re.compile(r"(?P<host>.+?)(?:\.(?P<started>\d+)-(?P<boot>[0-9a-f]{8})-(?P<namespace>\d+))?\.(?P<pid>\d+)")
_BOOT_DIGITS = 8
PARENT_VARIABLE = "HARNESS_PARENT"
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


@dataclass(frozen=True)
class Process:
    """A process on some host. Unknown parts are empty."""

    host: str
    pid: int
    started: str = ""
    """Start time in clock ticks since the boot of the kernel."""
    boot: str = ""
    """First 8 digits of the kernel's boot ID: differs between machines, and between two boots of one machine."""
    namespace: str = ""
    """Inode number of the PID namespace: differs between containers."""

    @classmethod
    def current(cls) -> Process:
        """Return the identity of this process."""
        return own_process(os.getpid())

    @classmethod
    def of(cls, recorded: Mapping[str, Any]) -> Process | None:
        """Return the process that a JSON record names, or None if it names none."""
        try:
            texts = [str(recorded.get(name) or "") for name in ("started", "boot", "pid_namespace")]
            return cls(str(recorded["host"]), int(recorded["pid"]), *texts)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            return None

    @classmethod
    def of_suffix(cls, text: str) -> Process | None:
        """Return the process that `suffix` describes, or None if the text has another form."""
        match = _SUFFIX.fullmatch(text)
        if match is None:
            return None
        texts = [match[name] or "" for name in ("started", "boot", "namespace")]
        return cls(match["host"], int(match["pid"]), *texts)

    @cached_property
    def record(self) -> dict[str, Any]:
        """Return the identity as fields of a JSON record. `of` reads them."""
        fine = {"started": self.started, "boot": self.boot, "pid_namespace": self.namespace} if self._is_fine else {}
        return {"host": self.host, "pid": self.pid, **fine}

    @cached_property
    def suffix(self) -> str:
        """Return the identity as the end of a temporary file's name. `of_suffix` reads it."""
        fine = f".{self.started}-{self.boot}-{self.namespace}" if self._is_fine else ""
        return f"{self.host}{fine}.{self.pid}"

    @cached_property
    def _is_fine(self) -> bool:
        return bool(self.started and self.boot and self.namespace)

    @property
    def on_this_kernel(self) -> bool:
        """Return whether it runs, or ran, under this boot of this machine."""
        return self.boot == _boot() if self._is_fine else self.host == socket.gethostname()

    @property
    def is_current(self) -> bool:
        """Return whether it is this process, as far as the record tells."""
        own = Process.current()
        return self == own if self._is_fine and own._is_fine else (self.host, self.pid) == (own.host, own.pid)

    @property
    def alive(self) -> bool | None:
        """Return whether the process is running; None if that cannot be known here.

        It is unknown for another machine, an earlier boot, or another container.
        """
        if not self.on_this_kernel:
            return None
        if not self._is_fine:
            return process_exists(self.pid)
        if self.namespace != _namespace():  # also if this process cannot read its own
            return None
        state, started = _stat(self.pid)
        if not started:  # hidden from this user (hidepid), or gone
            return process_exists(self.pid)
        return started == self.started and state not in "ZX"


@functools.cache
def own_process(pid: int) -> Process:
    """Return the identity of this process.

    Args:
        pid: `os.getpid()`. The identity is cached for it, so that a fork has its own.
    """
    process = Process(socket.gethostname(), pid, _stat(pid)[1], _boot(), _namespace())
    assert process.record and process.suffix  # computed now, since each run needs them
    return process


def end_with_parent() -> None:
    """Let the kernel send SIGTERM to this process when its parent ends, even by SIGKILL (Linux).

    This holds if the parent has put its PID into the environment variable PARENT_VARIABLE. If the parent has ended
    already, the signal is sent now.
    """
    parent = int(os.environ.get(PARENT_VARIABLE, "0"))
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if parent and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def process_exists(pid: int) -> bool:
    """Return whether this machine has a process with this number. It may be another one than was recorded."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's process
        return True
    return True


def _stat(pid: int) -> tuple[str, str]:
    """Return the state of a process ("Z": a zombie) and its start time in ticks, or two empty texts if unreadable."""
    try:
        # The command's name, in parentheses, may itself contain spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return "", ""


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().replace("-", "")[:_BOOT_DIGITS]
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        return ""
