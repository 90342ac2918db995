"""Stores and data that one test process makes and all others of the same run read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return the directory `name` of this test run, after `make` has filled it in one process.

    Nothing may write into it later: a test that does takes a copy.
    """
    base = factory.getbasetemp()
    # pytest-xdist gives each worker a directory of its own below that of the run
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"shared-{name}"
    with FileLock(place.with_suffix(".lock")):
        if not place.with_suffix(".made").exists():
            place.mkdir()
            make(place)
            place.with_suffix(".made").touch()
    return place
