"""Prepared digits, once for all tests of proofs."""

import sys
from pathlib import Path

import pytest

from harness.data.prepare import prepare

sys.path.insert(0, str(Path(__file__).parent))  # for made: pytest's importlib mode adds no directory


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    prepare("digits", directory)
    return directory
