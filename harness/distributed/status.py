"""Write the state of a launch to a small file.

Launchers lose the exit codes of their processes. A script that requeues jobs reads this file instead.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol

from harness.common.escape import redact, redact_word
from harness.common.files import is_special, read_json, write_atomically, write_without_waiting
from harness.common.process import Process
from harness.distributed.heartbeat import lost_peer, stood_still
from harness.distributed.stop import StoppedError
from harness.distributed.world import StopRequest

VARIABLE = "HARNESS_STATUS"
State = Literal["running", "finished", "preempted", "failed"]
_log = logging.getLogger(__name__)


class Reporting(Protocol):
    """The parts of a `World` that its status depends on."""

    stop: StopRequest

    def before_ending(self, tell: Callable[[str], None]) -> None: ...

    def peer_failed(self) -> bool: ...


def _is_anothers(path: Path) -> bool:
    """Return whether the file belongs to another launch that is running on this host."""
    try:
        written = {} if is_special(path) else read_json(path)
        owner = Process.of(written)
    except (OSError, ValueError):
        return False
    if owner is None or written.get("status") != "running" or owner.is_current:
        return False
    return owner.alive is True


@contextmanager
def reported(runs: Path, world: Reporting) -> Iterator[None]:
    """Keep the status file up to date while the block runs (rank 0 only).

    The path is HARNESS_STATUS, or else `runs`/status.json. A link, FIFO or device stays there. If the process is
    killed by SIGKILL, the status stays "running". The same command can resume in this case, too. The file of another
    running launch on this host is not overwritten.
    """
    # Phase: report "running", unless the file belongs to another running launch.
    path = Path(os.environ.get(VARIABLE) or runs / "status.json")
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    if _is_anothers(path):
        yield
        return
    _write(path, "running", "", since)
    world.before_ending(lambda reason: _write(path, "failed", reason, since))
    world.stop.last_words = lambda reason: _write(path, "preempted", reason, since)

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
    # Phase: describe this process and its state.
    content = {
        "status": status,
        "reason": redact(reason),
        **Process.current().record,
        "since": since,
        "argv": [redact_word(word) for word in sys.argv],
    }
    data = (json.dumps(content, indent=1) + "\n").encode()

    # Phase: write. A status file must not end a training, so errors are warnings.
    try:
        if is_special(path):
            write_without_waiting(path, data)
            return
        if status == "running":  # later, a missing directory was moved or deleted, and must not come back empty
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data, durable=False)
    except OSError as error:
        try:
            path.write_bytes(data)  # on a full disk, overwriting in place may still succeed
        except OSError:
            _log.warning(f"cannot write the status file {path}: {error.strerror or error}")
