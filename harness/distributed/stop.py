"""Requests to stop: a signal, or the death of the launcher. They are stored until all ranks can agree to stop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""Signals that Slurm, spot instances and `kill` send before they take the machine away."""

INSIST_SECONDS = 10.0
"""A signal repeated after this time has its default effect."""

# Accelerate's and torch's launchers set these for their workers. Without a launcher, a new parent process only means
# that the terminal was closed.
_LAUNCHED = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")


class StoppedError(RuntimeError):
    """The launch was asked to stop and has saved its state. The same command resumes it."""


class StopRequest:
    """Records whether this process should stop, and why."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._since = 0.0
        self._parent = os.getppid() if any(name in os.environ for name in _LAUNCHED) else None

    @property
    def reason(self) -> str | None:
        """Return the reason to stop, or None."""
        if self._signal is not None:
            return f"got {signal.Signals(self._signal).name}"
        # A launcher that is killed leaves its workers behind and forwards no signal to them.
        if self._parent is not None and os.getppid() != self._parent:
            return "the launcher is gone"
        return None

    def heed(self) -> None:
        """Raise StoppedError if this process should stop. Use it only in work that other processes do not wait for."""
        if (reason := self.reason) is not None:
            raise StoppedError(reason)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Store signals instead of dying while the block runs.

        A signal that is repeated after INSIST_SECONDS has its default effect.
        """
        before = {number: signal.signal(number, self._remember) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        # The launcher and the batch system may both send the signal. An immediate repetition is ignored.
        if self._signal is not None and time.monotonic() - self._since > INSIST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self._signal is None:
            self._signal, self._since = number, time.monotonic()
