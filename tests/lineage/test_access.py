"""Test servers that require credentials, which must never be printed or stored."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.cli.lineage.asking import List
from harness.cli.lineage.proving import Verify
from harness.cli.lineage.store_options import StoreOptions
from harness.lineage.bundle import write_bundle
from harness.lineage.reload import load_checkpoint
from harness.lineage.store import open_store
from harness.lineage.tracking.server import RefusedError
from tests.free_port import free_port
from tests.lineage.lineage_story import commit_story, key_of
from tests.tracking_server import server

USER, PASSWORD = "admin", "correct-horse-battery"


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)


def login(monkeypatch: pytest.MonkeyPatch, password: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)


@pytest.mark.long
def test_a_server_with_basic_auth(
    nobody: None, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Use MLflow's basic-auth app with right and wrong passwords.

    They are given in the environment or in the URI.
    """
    # Phase: start a server with one user
    there, port = tmp_path / "server", free_port()
    there.mkdir()
    shutil.copy(empty_store, there / "server.db")
    (there / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{there}/auth.db\nadmin_username = {USER}\n"
        # cache the login: basic-auth hashes the password at every request, which is slow by design
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\nauth_cache_ttl_seconds = 600\n"
    )
    environment = {"MLFLOW_AUTH_CONFIG_PATH": str(there / "auth.ini"), "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD}
    environment["MLFLOW_FLASK_SERVER_SECRET_KEY"] = "signs the cookies"
    address = f"http://127.0.0.1:{port}"
    with server(there, port, "--app-name", "basic-auth", **environment):
        # Phase: a missing or wrong password is refused without falling back to local runs
        for uri, password in ((address, None), (address, "wrong"), (f"http://{USER}:wrong@127.0.0.1:{port}", None)):
            if password:
                login(monkeypatch, password)
            store = open_store(tmp_path / "runs", uri, "test")
            for question in (store.require, store.summaries, lambda: store.find(key_of("x"))):  # noqa: B023
                with pytest.raises(RefusedError) as refused:
                    question()
                assert "does not know this user and password (401): set MLFLOW_TRACKING_USERNAME" in str(refused.value)
                assert "wrong" not in str(refused.value) and "\n" not in str(refused.value)
            for command in (
                List(place=StoreOptions(tmp_path / "runs", uri)),
                Verify("abcd", place=StoreOptions(tmp_path, uri)),
            ):
                with pytest.raises(RefusedError):
                    command.run()
        # Phase: deliver and load with the right password, first from the environment, then from the URI
        login(monkeypatch, PASSWORD)
        store = open_store(tmp_path / "runs", address, "test")
        paths = commit_story(store.local, levels=1)
        run_id = store.deliver(paths["search"])
        monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
        monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
        inside = f"http://{USER}:{PASSWORD}@127.0.0.1:{port}"
        store = open_store(tmp_path / "runs", inside, "test")
        level = store.deliver(paths["level 0"])
        assert load_checkpoint(level, inside, tmp_path / "none").level == 0
        assert {node.run_id for node in store.summaries()} == {run_id, level}
        List(place=StoreOptions(tmp_path / "runs", inside)).run()
        write_bundle(store, [level], tmp_path / "bundle")
    # Phase: the password is in no output, tag, description, log or file
    shown = capsys.readouterr()
    assert level[:8] in shown.out and PASSWORD not in shown.out + shown.err
    told = [path for path in tmp_path.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]
    assert told == []


class Gate(http.server.BaseHTTPRequestHandler):
    """Stand in for an empty MLflow server that accepts one bearer token.

    Other requests get the HTTP status `status`, except those to `/health`.
    """

    status = 401

    def answer(self) -> None:
        welcome = self.headers.get("Authorization") == "Bearer t0ken"
        status = 200 if welcome or self.path == "/health" else self.status
        body: object = "no"
        if welcome and "get-by-name" in self.path:
            status, body = 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such experiment"}
        elif welcome:
            body = {"experiments": []}
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gate() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gate) as gate:
        threading.Thread(target=gate.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{gate.server_port}"
        gate.shutdown()


def test_a_bearer_token_is_checked_and_never_shown(
    nobody: None, gate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for status, said in ((401, "or MLFLOW_TRACKING_TOKEN"), (403, "this user lacks the permission")):
        monkeypatch.setattr(Gate, "status", status)
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "n0ne")
        with pytest.raises(RefusedError, match=said) as refused:
            open_store(tmp_path, gate).summaries()
        assert "n0ne" not in str(refused.value)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    assert open_store(tmp_path, gate).summaries() == []
    open_store(tmp_path, gate).require()
