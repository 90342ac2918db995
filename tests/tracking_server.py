"""Run a real MLflow server for a test."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.warm import Running


@contextlib.contextmanager
def server(where: Path, port: int, *options: str, **environment: str) -> Iterator[None]:
    """Run a tracking server during a `with` block.

    The server has its own database and serves its artifacts.

    Args:
        where: Directory for the database, the artifacts and the log.
        port: Port on 127.0.0.1.
        options: Further command-line options of `mlflow server`.
        environment: Environment variables to add.
    """
    # background jobs would start seven more processes, and no test uses them
    environment.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    store = ["--backend-store-uri", f"sqlite:///{where}/server.db", "--artifacts-destination", str(where / "artifacts")]
    command = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *store, *options]
    process = Running(
        where, Path(sys.executable).with_name("mlflow"), *command, log=where / "server.log", **environment
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
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
