"""Write the state of a launch to a small file.

Launchers lose the exit codes of their processes. A script that requeues jobs reads this file instead.
"""

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
    """Return whether the file belongs to another launch that is running on this host."""
    try:
        written = json.loads(path.read_bytes())
        same_host, pid = written["host"] == socket.gethostname(), int(written["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return written.get("status") == "running" and same_host and pid != os.getpid() and process_exists(pid)


@contextmanager
def reported(runs: Path, world: World) -> Iterator[None]:
    """Keep the status file up to date while the block runs (rank 0 only).

    The path is HARNESS_STATUS, or else `runs`/status.json. If the process is killed by SIGKILL, the status stays
    "running". The same command can resume in this case, too. The file of another running launch on this host is not
    overwritten.
    """
    # Phase: report "running", unless the file belongs to another running launch.
    path = Path(os.environ.get(VARIABLE) or runs / "status.json")
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    if _is_anothers(path):
        yield
        return
    _write(path, "running", "", since)
    world.before_ending(lambda reason: _write(path, "failed", reason, since))

    # Phase: run the block and report its outcome.
    try:
        yield
    except StoppedError as error:
        _write(path, "preempted", str(error), since)
        raise
    except RuntimeError as error:
        # If another process died or hung, the job can be requeued: report "preempted". If it failed, report "failed".
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
    except OSError:  # a status file must not end a training, and other writes report disk problems
        with suppress(OSError):
            path.write_text(text)  # on a full disk, overwriting in place may still succeed
