"""Being asked to stop: by a signal, or by the launcher being gone. Remembered here until all ranks can agree on it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What Slurm, spot instances and `kill` send before they take the machine away."""

INSIST_SECONDS = 10.0

# set by Accelerate's and torch's launchers for their workers; without one a new parent means a closed terminal
_LAUNCHED = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")


class StoppedError(RuntimeError):
    """The launch was asked to stop and has saved where it was; the same command continues."""


class StopRequest:
    """Whether this process should stop, and why."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._since = 0.0
        self._parent = os.getppid() if any(name in os.environ for name in _LAUNCHED) else None

    @property
    def reason(self) -> str | None:
        """Why to stop; None: go on."""
        if self._signal is not None:
            return f"got {signal.Signals(self._signal).name}"
        # a launcher that is killed takes its signals with it and leaves its workers behind
        if self._parent is not None and os.getppid() != self._parent:
            return "the launcher is gone"
        return None

    def heed(self) -> None:
        """Raise StoppedError if this process should stop: for work that no other process waits for."""
        if (reason := self.reason) is not None:
            raise StoppedError(reason)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Remember signals instead of dying of them; one that comes again after ten seconds has its usual effect."""
        before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        # the launcher and the batch system may both send one: repetitions at once mean nothing more
        if self._signal is not None and time.monotonic() - self._since > INSIST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self._signal is None:
            self._signal, self._since = number, time.monotonic()
