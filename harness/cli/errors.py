"""Errors of a command line: one line on standard error and an exit code."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_STOPPED = 75
"""Exit code of a launch that was asked to stop (sysexits.h: try again later).

Launchers make 1 of it: see `harness.distributed.status`.
"""


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn errors that are the user's to mend into one line on standard error and exit code 1.

    Set HARNESS_TRACEBACK=1 to see where they were raised.
    """
    # Imported here: a tool that lists runs needs `reader_has_gone` and does without torch.
    from harness.distributed.stop import StoppedError
    from harness.distributed.world import OtherRankFailedError
    from harness.training.loop import NonFiniteLossError

    try:
        yield
    except OtherRankFailedError:
        sys.exit(1)
    except StoppedError as error:
        print(f"stopped: {error}. Nothing is lost: the same command goes on from here", file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    except KeyError:
        raise  # a bug of ours, not the user's to mend
    except (ValueError, LookupError, OSError, NonFiniteLossError) as error:
        if reader_has_gone(error):
            return
        if os.environ.get("HARNESS_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def reader_has_gone(error: Exception) -> bool:
    """Return whether the reader of standard output has closed it, as `| head` does, which is no error."""
    if not isinstance(error, BrokenPipeError):
        return False
    ends = select.poll()
    ends.register(sys.stdout.fileno(), 0)
    gone = any(event & select.POLLERR for _, event in ends.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # takes the output that Python still holds
    return gone
