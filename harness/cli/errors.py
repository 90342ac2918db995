"""Errors of a command: one line on standard error, and an exit code."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
        sys.stdout.flush()  # a closed pipe must fail here, not when Python ends
    except SystemExit as ending:
        if not ending.code:  # such as that of --help
            flush_output()
        raise
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
        _say(f"error: {error}")
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


def flush_output() -> None:
    """Flush standard output. A closed pipe is no error."""
    try:
        sys.stdout.flush()
    except BrokenPipeError as error:
        if not reader_has_gone(error):
            raise


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
