"""Errors of a command line: one line on standard error and an exit code."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from harness.distributed.stop import StoppedError
from harness.distributed.world import OtherRankFailedError
from harness.training.loop import NonFiniteLossError

EXIT_STOPPED = 75
"""Exit code of a launch that was asked to stop (sysexits.h: try again later).

Launchers make 1 of it: see `harness.distributed.status`.
"""

USER_ERRORS = (ValueError, LookupError, OSError, NonFiniteLossError)
"""Errors that speak to the user in one line; a traceback would only hide it."""


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn errors that are the user's to mend into one line on standard error and exit code 1.

    Set HARNESS_TRACEBACK=1 to see where they were raised.
    """
    try:
        yield
    except OtherRankFailedError:
        sys.exit(1)
    except StoppedError as error:
        print(f"stopped: {error}. Nothing is lost: the same command goes on from here", file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    except KeyError:
        raise  # a bug of ours, not the user's to mend
    except USER_ERRORS as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python still has to print
            return
        if os.environ.get("HARNESS_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _nobody_reads() -> bool:
    """Whether standard output is a pipe whose reader has gone, as `| head` does when it has enough: no error."""
    ends = select.poll()
    ends.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in ends.poll(0))
