"""Fixture: prepared digits, shared by all tests of `verify`."""

from pathlib import Path

import pytest

from harness.data.prepare import prepare
from tests.made_once import made_once


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "proof_data", lambda where: prepare("digits", where))
