"""Pytest plugin that logs each test's start and outcome.

`sitting.py` may stop pytest at its time limit, and this file then has the outcomes so far.
"""

import os
from typing import Any

LINES, IS_WORKER = "SITTING_TESTS", "PYTEST_XDIST_WORKER" in os.environ


def pytest_runtest_logstart(nodeid: str, location: Any, outcome: str = "begun") -> None:
    """Write a line with the outcome; "begun" when a test starts."""
    if not IS_WORKER and LINES in os.environ:
        with open(os.environ[LINES], "a") as file:
            file.write(f"{outcome} {nodeid}\n")


def pytest_runtest_logreport(report: Any) -> None:
    """Write the outcome of a test.

    After a CUDA error, end the worker, because all later tests in it would fail.
    """
    if report.when == "call" or report.outcome != "passed":
        pytest_runtest_logstart(report.nodeid, None, report.outcome)
    if IS_WORKER and report.failed and "CUDA error" in str(report.longrepr):
        os._exit(70)
