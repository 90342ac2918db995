"""Tiny searches on real digits, in this process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.experiment import Experiment

sys.path.insert(0, str(Path(__file__).parent))  # for searching: pytest's importlib mode adds no directory

from searching import open_experiment  # noqa: E402


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Experiment]:
    """One launch for all tests of methods; `experiment.using(method, …)` searches."""
    yield from open_experiment(tmp_path_factory.mktemp("methods"))
