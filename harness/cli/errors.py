"""Errors of a command: one line on standard error, and an exit code."""

from __future__ import annotations

import atexit
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from harness.common.escape import for_terminal
from harness.common.optional import explained
from harness.distributed.stop import EXIT_STOPPED


@contextmanager
def clear_errors() -> Iterator[None]:
    """Print an error that the user can fix as one line, and exit with code 1.

    HARNESS_TRACEBACK=1 shows the traceback instead. Exceptions that indicate a bug pass through.
    """
    try:
        yield
    except KeyboardInterrupt:  # before a launch listens for signals, or after it
        sys.exit(interrupted())
    except _loaded("harness.distributed.world", "OtherRankFailedError"):
        sys.exit(1)  # the other rank prints the error
    except _loaded("harness.distributed.stop", "StoppedError") as error:
        _say(f"stopped: {error}. Finished work is saved. Run the same command to resume")
        sys.exit(EXIT_STOPPED)
    except ImportError as error:
        line = explained(error)
        if line is None or os.environ.get("HARNESS_TRACEBACK"):
            raise
        _say(f"error: {line}")
        sys.exit(1)
    except KeyError:
        raise  # a bug of the harness
    except (ValueError, LookupError, OSError, _loaded("harness.training.loop", "NonFiniteLossError")) as error:
        if reader_has_gone(error):
            return
        if os.environ.get("HARNESS_TRACEBACK"):
            raise
        text = str(error)
        if isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError) and error.filename:
            text = f"cannot open {error.filename}: {error.strerror}"
        _say(f"error: {text}")
        sys.exit(1)


def interrupted() -> int:
    """Print that Ctrl-C ended the command, and return its exit code."""
    _say("stopped: got SIGINT")
    return 128 + signal.SIGINT


def _say(line: str) -> None:
    """Print a line on standard error. A closed terminal changes no exit code, neither now nor when Python ends."""
    try:
        print("\n".join(map(for_terminal, line.split("\n"))), file=sys.stderr, flush=True)
    except OSError:
        for descriptor in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


class _NeverRaised(Exception):
    """Stand-in for an exception class whose module is not loaded."""


def _loaded(module: str, name: str) -> Any:
    """Return an exception class without loading its module: `--help` and parse errors need no torch."""
    return getattr(sys.modules.get(module), name, _NeverRaised)


@cache
def let_readers_go() -> None:
    """End without a message of Python if the reader of standard output closes it, as `| head` does."""
    atexit.register(_flush_output)  # output that is still buffered would fail later, when Python ends


def _flush_output() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError as error:
        if not reader_has_gone(error):
            raise


@contextmanager
def quiet_help() -> Iterator[None]:
    """Exit with code 0 if the reader of a long help text closes it."""
    try:
        yield
    except BrokenPipeError as error:
        if not reader_has_gone(error):
            raise
        sys.exit(0)


def reader_has_gone(error: BaseException) -> bool:
    """Return whether the reader closed standard output, as `| head` does. This is no error."""
    if not isinstance(error, BrokenPipeError):
        return False
    ends = select.poll()
    ends.register(sys.stdout.fileno(), 0)
    gone = any(event & select.POLLERR for _, event in ends.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # discards output that Python still buffers
    return gone
