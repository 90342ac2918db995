"""Messages of the harness, by the standard library's `logging`.

Each module logs to the logger of its own name, below `harness`. Importing harness installs no handler, so that a
program which uses it gets ordinary log records. A command calls `show_messages`.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Literal, get_args

from tqdm import tqdm

from harness.common.escape import for_terminal

Verbosity = Literal["quiet", "normal", "verbose"]
VARIABLE = "HARNESS_LOG"
_LEVELS = {"quiet": logging.WARNING, "normal": logging.INFO, "verbose": logging.DEBUG}


def show_messages(verbosity: Verbosity | None = None) -> None:
    """Write the messages of this process to standard error, around progress bars.

    Args:
        verbosity: quiet (warnings alone, no progress bars), normal, or verbose (details, each with its time and
            module). If None, the environment variable HARNESS_LOG says it; normal is the default.

    Raises:
        ValueError: HARNESS_LOG is none of these.
    """
    chosen = verbosity or os.environ.get(VARIABLE) or "normal"
    if chosen not in _LEVELS:
        raise ValueError(f"{VARIABLE} is {chosen!r}; known: {', '.join(get_args(Verbosity))}")
    logger = logging.getLogger("harness")
    for handler in [handler for handler in logger.handlers if isinstance(handler, _AroundBars)]:
        logger.removeHandler(handler)
    logger.addHandler(_AroundBars(chosen))
    logger.setLevel(_LEVELS[chosen])
    logger.propagate = False  # a library that sets up the root logger must not print each message again


def is_quiet() -> bool:
    """Return whether this process was asked to show warnings alone: its progress bars stay away."""
    handlers = logging.getLogger("harness").handlers
    return any(isinstance(handler, _AroundBars) and handler.verbosity == "quiet" for handler in handlers)


class _AroundBars(logging.Handler):
    """Write each message as lines of standard error that tear no progress bar."""

    def __init__(self, verbosity: str) -> None:
        super().__init__()
        self.verbosity = verbosity
        if verbosity == "verbose":
            self.setFormatter(_Lines("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
        else:
            self.setFormatter(_Lines())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), sys.stderr)
        except Exception:
            self.handleError(record)


class _Lines(logging.Formatter):
    """Name the level unless it is INFO, and write out characters that a terminal would obey."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        text = level + "\n".join(for_terminal(line) for line in record.message.split("\n"))
        return super().formatMessage(logging.makeLogRecord({**record.__dict__, "message": text}))
