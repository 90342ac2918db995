"""Fixture: prepared digits, shared by all tests of `verify`."""

from pathlib import Path

import pytest

from harness.data.prepare import prepare


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    prepare("digits", directory)
    return directory
