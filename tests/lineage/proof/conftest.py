"""Prepared digits, once for all tests of proofs."""

from pathlib import Path

import pytest

from harness.data.prepare import prepare


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    prepare("digits", directory)
    return directory
