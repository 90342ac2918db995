"""How a launch ended, in a small file: launchers lose exit codes, and a requeueing script must not guess."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Literal

from harness.training.stop import StoppedError

VARIABLE = "HARNESS_STATUS"
State = Literal["running", "finished", "preempted", "failed"]

_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "remote process exited")
"""How gloo and NCCL speak of a process that is gone."""


@contextmanager
def reported(runs: Path) -> Iterator[None]:
    """Keep the status file while the block runs (rank 0): HARNESS_STATUS, or `runs`/status.json.

    It stays "running" when the process is killed outright: the same command continues then as well.
    """
    path = Path(os.environ.get(VARIABLE) or runs / "status.json")
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    _write(path, "running", "", since)
    try:
        yield
    except StoppedError as error:
        _write(path, "preempted", str(error), since)
        raise
    except RuntimeError as error:
        # another process died: the same command goes on, so this must be requeued
        lost = any(sign in str(error) for sign in _LOST_PEER)
        _write(path, "preempted" if lost else "failed", f"{type(error).__name__}: {error}", since)
        raise
    except BaseException as error:
        _write(path, "failed", f"{type(error).__name__}: {error}", since)
        raise
    _write(path, "finished", "", since)


def _write(path: Path, status: State, reason: str, since: str) -> None:
    content = {
        "status": status,
        "reason": reason,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": since,
        "argv": sys.argv,
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(OSError):  # a full disk must not end a training; the launch itself says what is wrong
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(temporary, path)
