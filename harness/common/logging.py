"""Messages and progress of the harness on standard error, through the standard library's `logging`.

Each module logs to a logger of its own name, below `harness`. Importing the package installs no handler, so that a
program that embeds it receives ordinary log records. Commands call `show_messages`.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

from tqdm import tqdm

from harness.common.escape import for_terminal
from harness.common.launched import launcher_number

Verbosity = Literal["quiet", "normal", "verbose"]
VARIABLE = "HARNESS_LOG"
SECONDS_PER_LINE = 60.0
"""Interval between progress lines when standard error is not a terminal."""
EpochWatch = Callable[[str, float, int, bool], None]
"""Takes a run's name, its finished epochs, all its epochs, and whether the finished ones were loaded."""
_watches: list[EpochWatch] = []
_LEVELS = {"quiet": logging.WARNING, "normal": logging.INFO, "verbose": logging.DEBUG}
_log = logging.getLogger(__name__)


def show_messages(verbosity: Verbosity | None = None) -> None:
    """Write this process's messages to standard error without tearing progress bars.

    Args:
        verbosity: quiet (warnings only, no progress), normal (ranks other than 0 show warnings only), or verbose
            (debug messages, with time and module). None falls back to the environment variable HARNESS_LOG, then to
            normal.

    Raises:
        ValueError: HARNESS_LOG has an unknown value.
    """
    chosen = verbosity or os.environ.get(VARIABLE) or "normal"
    if chosen not in _LEVELS:
        raise ValueError(f"{VARIABLE} is {chosen!r}; known: {', '.join(get_args(Verbosity))}")
    logger = logging.getLogger("harness")
    for handler in [handler for handler in logger.handlers if isinstance(handler, _AroundBars)]:
        logger.removeHandler(handler)
    logger.addHandler(_AroundBars(chosen))
    other_rank = launcher_number("RANK", 0) != 0
    logger.setLevel(logging.WARNING if other_rank and chosen == "normal" else _LEVELS[chosen])
    logger.propagate = False  # otherwise a configured root logger prints each message a second time


def is_quiet() -> bool:
    """Return whether this process shows warnings only."""
    handlers = logging.getLogger("harness").handlers
    return any(isinstance(handler, _AroundBars) and handler.verbosity == "quiet" for handler in handlers)


class Progress(Protocol):
    """Counter of finished steps that `progress` yields."""

    postfix: str
    """Text beside the count, for example the current loss."""

    def update(self, n: int = 1) -> Any:
        """Count `n` more steps."""

    def set_postfix_str(self, s: str) -> Any:
        """Set `postfix`, and show it at once."""

    def unpause(self) -> Any:
        """Exclude the time until now from the rate."""


@contextmanager
def watching_epochs(watch: EpochWatch) -> Iterator[None]:
    """Call `watch` whenever epochs of a run are finished or loaded, while the block runs."""
    _watches.append(watch)
    try:
        yield
    finally:
        _watches.remove(watch)


def tell_epochs(name: str, done: float, epochs: int, *, loaded: bool = False) -> None:
    """Tell watches that `done` of a run's `epochs` are finished."""
    for watch in _watches:
        watch(name, done, epochs, loaded)


@contextmanager
def progress(
    name: str, total: int, unit: str, *, done: int = 0, shown: bool | None = None, epochs: int = 0
) -> Iterator[Progress]:
    """Show the progress of a loop on standard error.

    A terminal gets a bar that disappears at the end. A pipe or a file gets one line a minute.

    Args:
        name: Name of the loop.
        total: Number of steps.
        unit: Name of one step, for example "images".
        done: Steps that are finished before the loop starts.
        shown: False shows nothing. None means: unless the verbosity is quiet.
        epochs: Epochs of training that the loop stands for, for `watching_epochs`.

    Yields:
        The counter to update.
    """
    hidden = is_quiet() if shown is None else not shown
    if hidden or sys.stderr.isatty():
        # Phase: a bar, or a disabled one.
        with tqdm(
            total=total, initial=done, desc=name, unit=f" {unit}", leave=False, disable=hidden, dynamic_ncols=True
        ) as bar:
            yield bar
    else:
        yield _MinuteLines(name, total, unit, done, epochs)


@dataclass
class _MinuteLines:
    """Progress as one log line a minute."""

    name: str
    total: int
    unit: str
    done: int
    epochs: int = 0
    postfix: str = ""
    last: tuple[float, int] | None = field(default=None, init=False)
    """Time and count at the last line."""

    def update(self, n: int = 1) -> None:
        self.done, now = self.done + n, time.monotonic()
        if self.epochs and _watches:
            tell_epochs(self.name, self.epochs * self.done / self.total, self.epochs)
        if self.last is None:
            self.last = now, self.done  # steps restored from a checkpoint must not count for the rate
        seconds, steps = now - self.last[0], self.done - self.last[1]
        if seconds < SECONDS_PER_LINE:
            return
        left = tqdm.format_interval((self.total - self.done) * seconds / steps) if steps else "?"
        note = f"  {self.postfix}" if self.postfix else ""
        _log.info(
            f"{self.name}  {self.done}/{self.total} {self.unit}{note}  {steps / seconds:.3g} {self.unit}/s  {left} left"
        )
        self.last = now, self.done

    def set_postfix_str(self, s: str) -> None:
        self.postfix = s
        _log.info(f"{self.name}  {self.done}/{self.total} {self.unit}  {s}")

    def unpause(self) -> None:
        self.last = None


class _AroundBars(logging.Handler):
    """Write each message above the progress bars, with dangerous characters escaped."""

    def __init__(self, verbosity: str) -> None:
        super().__init__()
        self.verbosity = verbosity
        verbose = verbosity == "verbose"
        self.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s" if verbose else None, "%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            # Phase: name the level unless it is INFO, and escape characters that control a terminal.
            level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
            lines = (level + record.getMessage()).split("\n")
            text = "\n".join(line if line.isprintable() else for_terminal(line) for line in lines)
            safe = logging.makeLogRecord({**record.__dict__, "msg": text, "args": None})
            tqdm.write(self.format(safe), sys.stderr)
        except Exception:
            self.handleError(record)
