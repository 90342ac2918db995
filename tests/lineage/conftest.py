"""Real SQLite stores, copied from one template: making the schema takes eight seconds."""

import shutil
import sys
from pathlib import Path

import pytest

from harness.lineage.store import LineageStore, open_store
from harness.lineage.tracking.server import Server

sys.path.insert(0, str(Path(__file__).parent))  # for lineage_story: pytest's importlib mode adds no directory


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mlflow-template") / "mlflow.db"
    Server(f"sqlite:///{path}", "test", path.parent).client().search_experiments()
    return path


@pytest.fixture
def store(template: Path, tmp_path: Path) -> LineageStore:
    shutil.copy(template, tmp_path / "mlflow.db")
    return open_store(tmp_path / "runs", f"sqlite:///{tmp_path / 'mlflow.db'}", "test")
