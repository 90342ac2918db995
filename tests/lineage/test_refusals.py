"""What "unreachable", "busy" and "refused" mean for a store, what a launch does then, and what the messages say."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    INVALID_STATE,
    RESOURCE_ALREADY_EXISTS,
    TEMPORARILY_UNAVAILABLE,
)
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError

from harness.common.digest import sha256_json
from harness.config import TicketConfig
from harness.lineage.store import LineageStore, open_store
from harness.lineage.tracking import server as server_module
from harness.lineage.tracking.server import RefusedError, Server, sqlite_path

SECRET = "postgresql://user:S3C/R ET@host/db?password=T0K"


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:///a.db", "a.db"),
        ("sqlite:////x/a.db", "/x/a.db"),
        ("sqlite:////x/a#b.db", "/x/a#b.db"),
        ("sqlite:////x/a%20b;c&d.db", "/x/a%20b;c&d.db"),
        ("sqlite:///a.db?timeout=5", "a.db"),
        ("sqlite+pysqlite:////x/a.db", "/x/a.db"),
        ("http://host:5000", None),
        ("postgresql://host/a", None),
        ("sqlitex:///a.db", None),
        (None, None),
    ],
)
def test_the_file_of_a_sqlite_uri(uri: str | None, path: str | None) -> None:
    assert sqlite_path(uri) == (None if path is None else Path(path))


def error_401() -> Exception:
    response = requests.Response()
    response.status_code = 401
    return requests.HTTPError("401", response=response)


MISSING = ModuleNotFoundError("No module named 'psycopg2'", name="psycopg2")
OLD = MlflowException("Detected out-of-date database schema (found version a, but expected b). Take a backup of it.")


@pytest.mark.parametrize(
    ("error", "refused", "said"),
    [
        (error_401(), True, "MLFLOW_TRACKING_USERNAME"),
        (MISSING, True, "needs the Python package psycopg2 .*`pip install 'psycopg2-binary'`"),
        (OLD, True, r"\(found version a, but expected b\): .*`mlflow db upgrade`"),
        (MlflowException("Invalid experiment name: ''", INVALID_PARAMETER_VALUE), True, "Invalid experiment name"),
        (MlflowException("The experiment 1 must be in the 'active' state", INVALID_STATE), True, "must be in the 'act"),
        (
            MlflowException("API request failed with error code 405 != 200"),
            True,
            "check that an MLflow server runs at this",
        ),
        (ArgumentError("Could not parse"), True, "no valid address of a database"),
        (NoSuchModuleError("Can't load plugin: x"), True, "no valid address of a database"),
        (RefusedError("experiment 'a' was deleted"), True, "experiment 'a' was deleted"),
        # A later attempt may succeed.
        (MlflowException("x", TEMPORARILY_UNAVAILABLE), False, "x"),
        (MlflowException("x", INTERNAL_ERROR), False, "x"),
        (MlflowException("x", RESOURCE_ALREADY_EXISTS), False, "x"),  # another launch was faster
        (MlflowException("API request failed with error code 429 != 200"), False, "429"),
        (MlflowException("API request failed with error code 502 != 200"), False, "502"),
        (
            MlflowException("failed with exception Pool: Max retries (Caused by ResponseError('too many 502 errors'))"),
            False,
            ": too many 502 errors$",
        ),
        (OperationalError("s", {}, Exception("database is locked")), False, "busy: another process is writing"),
        (ConnectionError("no answer within 5 s"), False, "no answer within 5 s$"),
        (OSError(28, "No space left on device"), False, "No space left"),
        (
            MlflowException(f"cannot connect to {SECRET}: timeout"),
            False,
            r"postgresql://\*\*\*@host/db\?password=\*\*\*: ",
        ),
    ],
    ids=repr,
)
def test_an_error_of_the_store_is_one_line_and_says_whether_to_try_again(
    tmp_path: Path, error: Exception, refused: bool, said: str
) -> None:
    server = Server(SECRET, "test", tmp_path)
    with pytest.raises(ConnectionError, match=said) as raised, server.talking("begin"):
        raise error
    text = str(raised.value)
    assert isinstance(raised.value, RefusedError) is refused
    assert text.startswith("cannot begin: MLflow at postgresql://***@host/db?password=***: ") and "\n" not in text
    assert "S3C" not in text and "ET@" not in text and "T0K" not in text


def test_errors_of_the_harness_pass(tmp_path: Path) -> None:
    for error in (ValueError("altered"), KeyError("x"), RuntimeError("a bug")):
        with pytest.raises(type(error)) as raised, Server(SECRET, "test", tmp_path).talking("begin"):
            raise error
        assert raised.value is error


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite://", "names no file"),
        ("sqlite://mlflow.db", "names no file"),
        ("SQLITE:///mlflow.db", "names no file"),
        ("sqlite:///file::memory:?uri=true", "names no file"),
        ("sqlite:///{tmp_path}", "names no file"),
        ("sqlite:///{tmp_path}/text.db", "text.db is no SQLite database"),
        ("postgresql://u:S3C@host:port/db", "no valid address"),
        ("foo://u:S3C@host/db", "unsupported URI"),
        ("http://[::1", "no valid address|cannot|no answer"),
    ],
)
def test_an_address_that_cannot_work_is_refused(tmp_path: Path, uri: str, said: str) -> None:
    (tmp_path / "text.db").write_text("no database" * 100)
    uri = uri.format(tmp_path=tmp_path)
    store = open_store(tmp_path / "runs", uri)
    with pytest.raises(ConnectionError, match=said) as raised, store.server.talking("begin"):
        store.server.client().search_experiments(max_results=1)
    assert "S3C" not in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.db"]


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> LineageStore:
    return open_store(tmp_path / "runs", f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}", "test")


def database(store: LineageStore) -> Path:
    path = sqlite_path(store.tracking_uri)
    assert path is not None
    return path


def test_a_busy_store_is_not_an_empty_one(store: LineageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "BUSY_SECONDS", 0.3)
    writer = sqlite3.connect(database(store))
    writer.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ConnectionError, match="busy: another process is writing.*Try again later, or pass --offline"):
        store.require()
    for question in (lambda: store.find(sha256_json("x")), store.summaries):
        with pytest.raises(ConnectionError, match="busy"):
            question()
    writer.rollback()
    store.require()
    assert store.find(sha256_json("x")) is None


def test_an_empty_answer_is_not_an_empty_store(store: LineageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway answers 200 with an empty body, which MLflow's client reads as an experiment without an ID."""
    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", lambda self, name: Experiment("", "", "", "active"))
    with pytest.raises(ConnectionError, match="the answer is empty.*pass --offline"):
        store.require()


@pytest.mark.parametrize("answer", ["", "{}", '{"runs": null}', '{"status": "ok"}', '{"runs": {}}', '{"runs": [{}]}'])
def test_no_question_takes_an_empty_answer_for_an_empty_store(tmp_path: Path, answer: str) -> None:
    """A gateway can also begin to answer so after the start of a launch."""
    with answering(answer) as uri:
        store = open_store(tmp_path, uri)
        questions = (
            store.require,
            lambda: store.find(sha256_json("x")),
            lambda: store.run_id_of(sha256_json("x")),
            store.summaries,
            store.experiments,
            lambda: store.load("0" * 32),
            lambda: store.run_id_of_model("models:/a@b"),
            lambda: store.run_id_of_model("models:/m-0"),
            store.server.own_experiment,
            store.server.restore_experiment,
        )
        for question in questions:
            with pytest.raises(ConnectionError, match="the answer is empty"), store.server.talking("ask"):
                question()


@contextlib.contextmanager
def answering(body: str) -> Iterator[str]:
    """Run an HTTP server that answers each request with `body` and status 200, and yield its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.write_bytes(b""), "mlflow.db is empty: it was damaged.*`python .*tools/lineage.py sync`"),
        (lambda path: run_sql(path, "DROP TABLE tags"), "mlflow.db has no table tags: it was damaged"),
        (lambda path: run_sql(path, "DROP TABLE runs"), "mlflow.db has no table runs"),
        (lambda path: (path.unlink(), run_sql(path, "CREATE TABLE a (b)")), "no table experiments, latest_metrics, m"),
        (lambda path: run_sql(path, "INSERT INTO alembic_version VALUES ('x')"), "more than one head"),
        (lambda path: (path.unlink(), path.symlink_to("/missing/a.db")), "links to /missing/a.db, which does not ex"),
        (lambda path: path.parent.rename(path.parent.with_name("away")), "directory .*/store does not exist"),
    ],
)
def test_a_damaged_database_is_not_an_empty_store(
    empty_store: Path, tmp_path: Path, change: Callable[[Path], object], said: str
) -> None:
    """MLflow would create missing tables, and all finished runs would be made again."""
    (tmp_path / "store").mkdir()
    path = Path(shutil.copy(empty_store, tmp_path / "store" / "mlflow.db"))
    change(path)
    store = open_store(tmp_path / "runs", f"sqlite:///{path}")
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(ConnectionError, match=f"cannot begin: .*{said}.*--offline"):
        store.require()
    if path.exists() or path.is_symlink():
        with pytest.raises(ConnectionError, match=said):
            store.find(sha256_json("x"))
    assert (path.read_bytes() if path.exists() else None) == before


def run_sql(path: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


def test_a_deleted_experiment_is_said_before_the_training(store: LineageStore) -> None:
    client = MlflowClient(store.tracking_uri)
    store.require()  # it does not exist yet, and is not created
    assert client.get_experiment_by_name("test") is None
    number = client.create_experiment("test")
    client.delete_experiment(number)
    with pytest.raises(RefusedError, match="experiment 'test' was deleted in MLflow: restore it.*--offline"):
        store.require()
    client.restore_experiment(number)
    store.require()


@pytest.mark.parametrize("version", ["cbc13b556ace", "ffffffffffff"])
def test_another_database_schema_is_said_before_the_training(store: LineageStore, version: str) -> None:
    with sqlite3.connect(database(store)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
    connection.close()
    with pytest.raises(RefusedError, match=f"found version {version}.*`mlflow db upgrade`"):
        store.require()


@pytest.mark.parametrize(
    ("name", "said"),
    [("", "must not be empty"), ("  ", "must not be empty"), ("x" * 600, "600 characters"), ("a\nb", "control char")],
)
def test_names_of_experiments_are_checked_with_the_settings(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"experiment .*{said}"):
        TicketConfig("", experiment=name)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"http_proxy": "http://u:S3C@127.0.0.1:9"},
            r"proxy http://\*\*\*@127.0.0.1:9 \(from http_proxy\).* to NO_PROXY",
        ),
        ({"HTTP_PROXY": "http://127.0.0.1:9"}, "from HTTP_PROXY"),
        ({"ALL_PROXY": "http://127.0.0.1:9"}, "from ALL_PROXY"),
        ({"http_proxy": "http://"}, r"missing the host\. It was asked through the proxy http:// \(from http_proxy"),
        ({"http_proxy": "ftp://127.0.0.1:9"}, r"scheme ftp.*the proxy ftp://127.0.0.1:9 \(from http_proxy"),
        ({"http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.2"}, None),
        ({"http_proxy": "http://127.0.0.1:abc"}, "no valid address.* through the proxy http://127.0.0.1:abc"),
        ({"https_proxy": "http://127.0.0.1:9"}, None),
        ({}, None),
    ],
)
def test_a_proxy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str | None
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with socket.create_server(("127.0.0.2", 0)) as free:
        port = free.getsockname()[1]
    store = open_store(tmp_path, f"http://127.0.0.2:{port}")
    with pytest.raises(ConnectionError, match=said or "Connection refused. Is the server up. Start it, or") as raised:
        store.require()
    text = str(raised.value)
    assert ("through the proxy" in text) is (said is not None) and "S3C" not in text and "?." not in text


@pytest.mark.parametrize(
    ("variables", "verify", "cert"),
    [
        ({}, True, None),
        ({"MLFLOW_TRACKING_INSECURE_TLS": "true"}, False, None),
        ({"MLFLOW_TRACKING_SERVER_CERT_PATH": "/ca.pem"}, "/ca.pem", None),
        ({"MLFLOW_TRACKING_CLIENT_CERT_PATH": "/me.pem"}, True, "/me.pem"),
    ],
)
def test_the_probe_trusts_the_certificates_that_mlflow_trusts(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], verify: object, cert: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    asked: dict[str, object] = {}
    monkeypatch.setattr(requests, "get", lambda url, **options: asked.update(options))
    server_module._probe("https://server.test")
    assert (asked["verify"], asked["cert"]) == (verify, cert)

    def refuse(url: str, **options: object) -> None:
        reason = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate (_ssl.c:1006)"
        raise requests.exceptions.SSLError(reason)

    monkeypatch.setattr(requests, "get", refuse)
    with pytest.raises(RefusedError, match=r"\(self-signed certificate\): set MLFLOW_TRACKING_SERVER_CERT_PATH"):
        server_module._probe("https://server.test")


@pytest.mark.parametrize("status", [403, 404, 407])
def test_a_proxy_that_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server("http://server.test:5000", "test", tmp_path)
    said = r"from http_proxy\).*add server.test to NO_PROXY"
    with pytest.raises(ConnectionError, match=said) as raised, server.talking("begin"):
        raise MlflowException(f"API request failed with error code {status} != 200")
    assert "?." not in str(raised.value)
    with pytest.raises(RefusedError, match="was deleted$"), server.talking("begin"):
        raise RefusedError("experiment 'test' was deleted")
