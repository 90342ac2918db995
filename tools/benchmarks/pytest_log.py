"""A pytest plugin: a line for each beginning and end of a test, since the clock of a sitting may stop the tests."""

from __future__ import annotations

import os
from typing import Any

LINES, IS_WORKER = "SITTING_TESTS", "PYTEST_XDIST_WORKER" in os.environ
"""The variable that names the file to write to, which one process of pytest alone does."""


def pytest_runtest_logstart(nodeid: str, location: Any) -> None:
    """Write that a test begins."""
    if not IS_WORKER and LINES in os.environ:
        with open(os.environ[LINES], "a") as file:
            file.write(f"begun {nodeid}\n")


def pytest_runtest_logreport(report: Any) -> None:
    """Write how a test ended; leave a process whose device is lost, since every later test in it would fail."""
    if not IS_WORKER and LINES in os.environ and (report.when == "call" or report.outcome != "passed"):
        with open(os.environ[LINES], "a") as file:
            file.write(f"{report.outcome} {report.nodeid}\n")
    if IS_WORKER and report.failed and "CUDA error" in str(report.longrepr):
        os._exit(70)
