"""Wait for something: the one rule for how long, and for what ends a wait.

A wait is measured by this process's monotonic clock. Clocks of other hosts and times of files never count. Every wait
of the main thread heeds a request to stop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LONGEST_PAUSE = 0.5
"""Seconds after which a waiting process notices a request to stop, at the latest."""

_checks: list[Callable[[], None]] = []


@contextmanager
def heeding(check: Callable[[], None]) -> Iterator[None]:
    """Let every wait of the main thread call `check`, which raises if the process should stop."""
    _checks.append(check)
    try:
        yield
    finally:
        _checks.remove(check)


def heed() -> None:
    """Raise if this process was asked to stop. Threads beside the main thread are never interrupted."""
    if threading.current_thread() is threading.main_thread():
        for check in _checks:
            check()


def wait_until(true: Callable[[], bool], seconds: float | None = None, *, pause: float = LONGEST_PAUSE) -> bool:
    """Wait until `true()`, for at most `seconds`.

    Args:
        true: The condition. It is checked at least once.
        seconds: Limit by the monotonic clock. None: no limit.
        pause: Seconds between two checks. A longer pause still heeds a request to stop every LONGEST_PAUSE.

    Returns:
        Whether the condition became true in time.
    """
    start = time.monotonic()
    while not true():
        # Phase: pause in short pieces, between which a request to stop is heeded.
        until = time.monotonic() + pause
        if seconds is not None:
            until = min(until, start + seconds)
        while (left := until - time.monotonic()) > 0:
            heed()
            time.sleep(min(left, LONGEST_PAUSE))
        heed()

        # Phase: give up after the limit.
        if seconds is not None and time.monotonic() >= start + seconds:
            return true()
    return True
