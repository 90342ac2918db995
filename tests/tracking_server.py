"""A real MLflow server on this machine."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def server(where: Path, port: int, *options: str, **environment: str) -> Iterator[None]:
    """A real tracking server that keeps and serves artifacts; `options` are more words of its command line."""
    # its queues for background jobs are seven more processes, which nothing here uses
    environment.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    store = ["--backend-store-uri", f"sqlite:///{where}/server.db", "--artifacts-destination", str(where / "artifacts")]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with open(where / "server.log", "ab") as log:
        process = subprocess.Popen(
            [*command, *store, *options],
            env={**os.environ, **environment},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + 90
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            assert process.poll() is None and time.monotonic() < until, (where / "server.log").read_text()
            time.sleep(0.2)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()
