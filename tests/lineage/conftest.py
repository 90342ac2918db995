"""Fixtures: a store with a SQLite database, and the module tools/lineage.py."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from harness.lineage.store import LineageStore
from tests.lineage.lineage_story import copied_store
from tests.lineage.lineage_tool import TOOL


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> LineageStore:
    return copied_store(empty_store, tmp_path)


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lineage_tool", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["lineage_tool"] = module
    spec.loader.exec_module(module)
    return module
