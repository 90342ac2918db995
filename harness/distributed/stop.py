"""The exception that ends a launch by request. It imports no torch."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from harness.common.waiting import heeding

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
"""Signals that ask to stop.

Slurm, spot instances and `kill` send the first two, Ctrl-C the third, and a closed terminal the fourth.
"""

INSIST_SECONDS = 10.0
"""A signal repeated after this time has its default effect."""
ECHO_SECONDS = 0.2
"""One Ctrl-C can arrive twice within this time, for example under `timeout`."""
LAUNCHED_ECHO_SECONDS = 2.0
"""As ECHO_SECONDS, under a launcher. It passes Ctrl-C on to its workers, which also get it from the terminal."""

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
        self._launched = any(name in os.environ for name in _LAUNCHED)
        self._parent = os.getppid() if self._launched else None
        self.last_words: Callable[[str], None] = lambda reason: None
        """Called with the reason before a repeated signal ends this process at once."""

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
        """Store signals instead of dying while the block runs. Waits of the main thread heed them.

        A second Ctrl-C ends the process at once. Another signal that is repeated after INSIST_SECONDS has its default
        effect.
        """
        # `nohup` lets its command ignore SIGHUP. That must stay so.
        keeps_running = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        heard = [number for number in SIGNALS if not (keeps_running and number == signal.SIGHUP)]
        before = {number: signal.signal(number, self._remember) for number in heard}
        try:
            with heeding(self.heed):
                yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        # Phase: store the first signal.
        if self._signal is None:
            self._signal, self._since = number, time.monotonic()
            return

        # Phase: end at once if the signal is repeated. The launcher and the batch system may both send the first one.
        echo = LAUNCHED_ECHO_SECONDS if self._launched else ECHO_SECONDS
        if time.monotonic() - self._since > (echo if number == signal.SIGINT else INSIST_SECONDS):
            with suppress(Exception):
                self.last_words(f"{self.reason}, then {signal.Signals(number).name} again")
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
