"""The exception that ends a launch by request. It imports no torch."""

from __future__ import annotations


class StoppedError(RuntimeError):
    """The launch was asked to stop and has saved its state. The same command resumes it."""
