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

from harness.common.escape import redact
from harness.common.files import process_exists, write_atomically
from harness.distributed.heartbeat import lost_peer, stood_still
from harness.distributed.stop import StoppedError
from harness.distributed.world import World

VARIABLE = "HARNESS_STATUS"
State = Literal["running", "finished", "preempted", "failed"]


def _is_anothers(path: Path) -> bool:
    """Whether the file belongs to another launch that is alive on this host."""
    try:
        written = json.loads(path.read_bytes())
        same_host, pid = written["host"] == socket.gethostname(), int(written["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return written.get("status") == "running" and same_host and pid != os.getpid() and process_exists(pid)


@contextmanager
def reported(runs: Path, world: World) -> Iterator[None]:
    """Keep the status file while the block runs (rank 0): HARNESS_STATUS, or `runs`/status.json.

    It stays "running" when the process is killed outright: the same command continues then as well. The file of a
    launch that is alive on this host is left alone.
    """
    path = Path(os.environ.get(VARIABLE) or runs / "status.json")
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    if _is_anothers(path):
        yield
        return
    _write(path, "running", "", since)
    world.before_ending(lambda reason: _write(path, "failed", reason, since))
    try:
        yield
    except StoppedError as error:
        _write(path, "preempted", str(error), since)
        raise
    except RuntimeError as error:
        # another process died or stood still: the same command goes on, so this must be requeued; unless it failed
        lost = stood_still(error) or (lost_peer(error) and not world.peer_failed())
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
        "argv": [redact(word) for word in sys.argv],
    }
    text = json.dumps(content, indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode(), durable=False)
    except OSError:  # must not end a training; the launch itself says what is wrong
        with suppress(OSError):
            path.write_text(text)  # on a full disk there may be room where the old text was
