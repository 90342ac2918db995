"""Share directories between the test processes of one run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a directory shared by all workers, filled on first use.

    The directory is read-only by convention. A test that writes must copy it first.

    Args:
        factory: pytest's factory of temporary directories.
        name: Name that identifies the directory in this test run.
        make: Function that fills the new directory. Only one process calls it.
    """
    base = factory.getbasetemp()
    # pytest-xdist gives each worker its own directory inside that of the run
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"shared-{name}"
    with FileLock(place.with_suffix(".lock")):
        if not place.with_suffix(".made").exists():
            place.mkdir()
            make(place)
            place.with_suffix(".made").touch()
    return place
