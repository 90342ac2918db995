"""Test that the SQLite database of a store is created atomically."""

from __future__ import annotations

import signal
import sqlite3
from pathlib import Path

import pytest

from harness.common.files import FAULT_VARIABLE
from harness.lineage.tracking.server import Server
from tests.warm import warm

MAKE = "import sys; from pathlib import Path; from harness.lineage.tracking.server import Server; "
MAKE += "Server(sys.argv[1], 'test', Path('.')).client().search_experiments()"


@pytest.mark.long
def test_a_kill_while_the_database_is_made_leaves_no_half_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    killed = warm(tmp_path, "-c", MAKE, uri, **{FAULT_VARIABLE: "database-made:1"})
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "mlflow.db").exists()
    assert len(list(tmp_path.iterdir())) == 1  # the partial database, under a temporary name
    server = Server(uri, "test", tmp_path)
    assert [one.name for one in server.client().search_experiments()] == ["Default"]
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


@pytest.mark.long
def test_a_database_that_another_process_made_first_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.lineage.tracking import server

    path = tmp_path / "mlflow.db"
    monkeypatch.setattr(server, "reach", lambda point: path.write_text("theirs"))
    server._make_database(path)
    assert path.read_text() == "theirs"


def test_a_half_made_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE span_metrics (trace_id VARCHAR(50))")
        connection.execute("CREATE TABLE experiments (experiment_id INTEGER PRIMARY KEY)")
    server = Server(f"sqlite:///{path}", "test", tmp_path)
    with pytest.raises(ConnectionError, match="has no table latest_metrics.*move the file"), server.talking("look"):
        server.client().search_experiments()
