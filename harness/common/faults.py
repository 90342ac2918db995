"""Named points at which a crash test may kill the process, to prove that nothing is lost there."""

from __future__ import annotations

import os
import signal

VARIABLE = "HARNESS_KILL_AT"
POINTS = (
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


def reach(point: str) -> None:
    """Die here of SIGKILL if HARNESS_KILL_AT is `point:n` and this is the n-th time; else nothing."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    name, _, number = wanted.partition(":")
    if name == point:
        _reached[point] = _reached.get(point, 0) + 1
        if _reached[point] == int(number or 1):
            os.kill(os.getpid(), signal.SIGKILL)
