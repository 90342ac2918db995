"""Find a port for a launcher or a server of a test."""

from __future__ import annotations

import socket


def free_port() -> int:
    """Return a local TCP port that is not in use."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
