"""The exception of a launch that was asked to stop. `harness.distributed.world` has the request itself."""

from __future__ import annotations


class StoppedError(RuntimeError):
    """The launch was asked to stop and has saved its state. The same command resumes it."""
