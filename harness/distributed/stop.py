"""The exception of a launch that was asked to stop. `harness.distributed.world` has the request itself."""

from __future__ import annotations

EXIT_STOPPED = 75
"""Exit code of a launch that was stopped by request (EX_TEMPFAIL of sysexits.h: retry later).

Launchers replace it with 1. `harness.distributed.status` keeps the reason.
"""


class StoppedError(RuntimeError):
    """The launch was asked to stop and has saved its state. The same command resumes it."""
