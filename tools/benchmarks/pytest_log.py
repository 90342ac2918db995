"""A pytest plugin: a line for each beginning and end of a test, since the clock of a sitting may stop the tests."""

import os
from typing import Any

LINES, IS_WORKER = "SITTING_TESTS", "PYTEST_XDIST_WORKER" in os.environ


def pytest_runtest_logstart(nodeid: str, location: Any, outcome: str = "begun") -> None:
    if not IS_WORKER and LINES in os.environ:
        with open(os.environ[LINES], "a") as file:
            file.write(f"{outcome} {nodeid}\n")


def pytest_runtest_logreport(report: Any) -> None:
    """Write how a test ended; leave a process whose device is lost, since every later test in it would fail."""
    if report.when == "call" or report.outcome != "passed":
        pytest_runtest_logstart(report.nodeid, None, report.outcome)
    if IS_WORKER and report.failed and "CUDA error" in str(report.longrepr):
        os._exit(70)
