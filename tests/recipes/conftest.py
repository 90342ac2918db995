"""A user's working directory with data in it, and a finished search."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for launching: pytest's importlib mode adds no directory

from launching import TINY, recipe, run_ids, tool  # noqa: E402


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """A directory with the digits in it."""
    where = tmp_path_factory.mktemp("user")
    tool(where, "prepare_data.py", "digits", "--out", "data")
    return where


@pytest.fixture(scope="session")
def searched(prepared) -> tuple[Path, list[str]]:
    """…and a finished tiny search in it."""
    return prepared, run_ids(recipe(prepared, "aws_digits.py", *TINY))
