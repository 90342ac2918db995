"""Test delivery to MLflow: one complete run per local run.

Deliveries that are killed, repeated or refused must leave no duplicate and no half-filled run.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from harness.common.digest import sha256_json
from harness.lineage.nodes.local_files import LocalNodes
from harness.lineage.nodes.record import LineageRecord, Parent
from harness.lineage.store import LineageStore, open_store
from harness.lineage.tracking.server import KEY_TAG, Server
from tests.lineage.lineage_story import START_MS, commit_story, key_of

pytestmark = pytest.mark.long  # most of these tests use an MLflow database

# all client calls that change the store, in the order of a delivery
SENDING = ["create_experiment", "create_run", "log_batch", "create_logged_model", "log_model_artifacts"]
SENDING += ["finalize_logged_model", "log_outputs", "log_inputs", "log_artifacts", "log_artifact", "set_tag"]
SENDING += ["create_registered_model", "create_model_version", "set_registered_model_alias", "set_terminated"]


def all_runs(store: LineageStore) -> list[Any]:
    client = MlflowClient(store.tracking_uri)
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return [client.get_run(run.info.run_id) for run in found]


def assert_complete(store: LineageStore, paths: dict[str, Path]) -> None:
    """Assert one finished, complete run per local run.

    Each has one READY model, except comparisons, and every metric point once.
    """
    client = MlflowClient(store.tracking_uri)
    runs = {run.data.tags["harness.key"]: run for run in all_runs(store)}
    assert sorted(runs) == sorted(key_of(name) for name in paths) and len(all_runs(store)) == len(paths)
    experiment = client.get_experiment_by_name("test").experiment_id
    models = client.search_logged_models([experiment])
    made = [run.info.run_id for run in runs.values() if run.data.tags["harness.kind"] != "analysis"]
    assert Counter(model.source_run_id for model in models) == Counter(made)
    assert {(model.name, str(model.status)) for model in models} == {("network", "READY")}
    for name in paths:
        run, record = runs[key_of(name)], store.local.load(key_of(name))
        assert (run.info.status, run.info.end_time, run.info.run_name) == ("FINISHED", record.finished_ms, record.name)
        for metric in {m.name for m in record.metrics}:
            history = client.get_metric_history(run.info.run_id, metric)
            got = sorted((p.step, p.value, p.timestamp) for p in history)
            assert got == sorted((m.step, m.value, m.timestamp_ms) for m in record.metrics if m.name == metric)


@pytest.mark.long
def test_story_is_seen_by_a_stock_client(store: LineageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = commit_story(store.local)
    # Phase: deliver the comparison, which delivers all its ancestors
    store.deliver(paths["lmc"])
    assert_complete(store, paths)
    client = MlflowClient(store.tracking_uri)
    runs = {run.data.tags["harness.key"]: run for run in all_runs(store)}
    model = {
        name: run.outputs.model_outputs[0].model_id
        for name in paths
        if (run := runs[key_of(name)]).outputs.model_outputs
    }

    # Phase: each run has its parents' models as inputs
    def inputs(name: str) -> list[str]:
        return sorted(given.model_id for given in runs[key_of(name)].inputs.model_inputs)

    assert inputs("search") == [] and inputs("dense") == []
    assert inputs("level 0") == [model["search"]] and inputs("level 2") == [model["level 1"]]
    assert inputs("signed_mask") == [model["level 2"]]
    assert inputs("lmc") == sorted([model["signed_mask"], model["dense"]])

    # Phase: runs are nested under their search or their parent
    def above(name: str) -> str | None:
        return runs[key_of(name)].data.tags.get("mlflow.parentRunId")

    root = runs[key_of("search")].info.run_id
    assert [above(f"level {level}") for level in range(3)] == [root] * 3
    assert above("signed_mask") == runs[key_of("level 2")].info.run_id
    assert above("lmc") == runs[key_of("signed_mask")].info.run_id
    assert above("search") is None and above("dense") is None

    # Phase: tags, parameters and data set of a level
    level = runs[key_of("level 1")]
    assert level.data.tags["level"] == "01" and level.data.tags["harness.root"] == key_of("search")
    assert level.data.params == {}  # a run of an early version, which did not record the inputs of its key
    data = level.inputs.dataset_inputs[0].dataset
    assert (data.name, data.digest) == ("digits", key_of("digits")[:36])
    assert level.info.start_time == START_MS + 20_000
    # Phase: download a mask with stock MLflow
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(store.tracking_uri))
    got = download_artifacts(f"runs:/{level.info.run_id}/network/signed_mask.safetensors")
    assert Path(got).read_bytes() == (paths["level 1"] / "signed_mask.safetensors").read_bytes()
    files = {f.path for f in client.list_artifacts(runs[key_of("lmc")].info.run_id)}
    assert files == {"SHA256SUMS", "config.json", "curve.json", "figures", "record.json"}


@pytest.mark.long
def test_delivery_is_idempotent(store: LineageStore) -> None:
    paths = commit_story(store.local)
    first = store.deliver(paths["lmc"])
    again = open_store(store.local.directory, store.tracking_uri, "test")
    assert again.deliver(paths["lmc"]) == first and list(again.sync()) == []
    shutil.rmtree(store.local.directory / ".delivered")  # without the cached run IDs, the key's tag finds the run
    assert again.deliver(paths["lmc"]) == first
    assert_complete(store, paths)


def test_duplicate_runs_of_a_repeated_request_are_removed(store: LineageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the duplicate run of a request that MLflow's client retried.

    The server may have carried out the first request although its response came too late.
    """
    paths = commit_story(store.local, levels=1)
    run_id = store.deliver(paths["level 0"])
    client, experiment = MlflowClient(store.tracking_uri), client_experiment(store, run_id)
    twin = client.create_run(experiment, tags={KEY_TAG: key_of("level 0")}).info.run_id
    client.create_logged_model(experiment, name="network", source_run_id=twin)
    underway = client.create_run(experiment, tags={KEY_TAG: key_of("level 1")}).info.run_id
    foreign = client.create_run(experiment).info.run_id
    monkeypatch.setattr(Server, "is_remote", property(lambda self: True))
    store.tidy()
    (root,) = (run.info.run_id for run in all_runs(store) if run.data.tags.get(KEY_TAG) == key_of("search"))
    assert {run.info.run_id for run in all_runs(store)} == {root, run_id, underway, foreign}
    assert {model.source_run_id for model in client.search_logged_models([experiment])} == {root, run_id}


def client_experiment(store: LineageStore, run_id: str) -> str:
    return str(MlflowClient(store.tracking_uri).get_run(run_id).info.experiment_id)


class Killed(BaseException):
    """Simulate SIGKILL: no `except Exception` catches it."""


def die_at(monkeypatch: pytest.MonkeyPatch, stop: int, after: bool) -> list[str]:
    """Patch MLflow's client so that call number `stop` raises `Killed`.

    Args:
        stop: Number of the call in `SENDING` order, from 1.
        after: Raise after the call took effect instead of before.

    Returns:
        Names of the completed calls; the list grows during the delivery.
    """
    calls, done = 0, []

    # Phase: wrap each method so that it counts its call and raises at number `stop`
    def wrapped(name: str, original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            number = calls
            if number == stop and not after:
                raise Killed
            result = original(*args, **kwargs)
            done.append(name)
            if number == stop:
                raise Killed
            return result

        return call

    # Phase: patch all methods that change the store
    for name in SENDING:
        monkeypatch.setattr(MlflowClient, name, wrapped(name, getattr(MlflowClient, name)))
    return done


@pytest.mark.long
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", ["level", "analysis"])
def test_killed_at_any_call_and_delivered_again_is_one_complete_run(
    store: LineageStore, monkeypatch: pytest.MonkeyPatch, after: bool, kind: str
) -> None:
    """Kill a delivery at each client call in turn, then retry.

    Each retry uses a new store, as a new process would.
    """
    paths = commit_story(store.local, levels=1)
    parent = store.local.load(key_of("level 0"))
    # Phase: one local run per kill, until a delivery has fewer calls than `stop`
    killed, stop = True, 0
    while killed:
        stop += 1
        record = replace(parent, key=key_of(f"trial {stop}"), kind=kind, parents=(Parent(parent.key, "compared"),))
        store.local.commit(record, lambda directory: (directory / "a.json").write_text("{}"))
        paths[f"trial {stop}"] = store.local.path(record)
        with monkeypatch.context() as patch:
            done = die_at(patch, stop, after)
            try:
                open_store(store.local.directory, store.tracking_uri, "test").deliver(store.local.path(record))
                killed = False
            except Killed:
                asked = open_store(store.local.directory, store.tracking_uri, "test").run_id_of(record.key)
                # after `set_terminated` only the picture on the search's page is still to be sent
                assert (asked is not None) == ("set_terminated" in done)
        open_store(store.local.directory, store.tracking_uri, "test").deliver(store.local.path(record))
    assert stop > (9 if kind == "level" else 6)  # a level takes nine such calls, a comparison six
    # Phase: deliver the rest and check the whole store
    for name in ("signed_mask", "dense", "lmc"):
        store.deliver(paths[name])
    assert_complete(store, paths)


def test_killed_in_the_middle_of_an_upload(store: LineageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = commit_story(store.local, levels=1)
    original = MlflowClient.log_model_artifacts

    def half(self: Any, model_id: str, directory: str) -> None:
        cut = store.local.directory.parent / "cut"
        cut.mkdir()
        (cut / "checkpoint.safetensors").write_bytes(b"half")
        original(self, model_id, str(cut))
        raise KeyboardInterrupt

    monkeypatch.setattr(MlflowClient, "log_model_artifacts", half)
    with pytest.raises(KeyboardInterrupt):
        store.deliver(paths["search"])
    monkeypatch.setattr(MlflowClient, "log_model_artifacts", original)
    run_id = store.deliver(paths["search"])
    shutil.rmtree(store.local.directory)
    assert store.find(key_of("search")) is not None and store.load(run_id).key == key_of("search")


def test_unfinished_run_is_not_read(store: LineageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = commit_story(store.local, levels=1)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MlflowClient, "set_terminated", killed)
    with pytest.raises(KeyboardInterrupt):
        store.deliver(paths["search"])
    (run,) = all_runs(store)
    with pytest.raises(ValueError, match="is not finished"):
        store.load(run.info.run_id)
    assert store.run_id_of(key_of("search")) is None
    shutil.rmtree(store.local.directory)
    assert store.find(key_of("search")) is None


def test_node_comes_back_from_mlflow_bit_for_bit(store: LineageStore) -> None:
    paths = commit_story(store.local)
    run_id = store.deliver(paths["lmc"])
    store.deliver(paths["level 2"])
    before = {n: {p.name: p.read_bytes() for p in d.rglob("*") if p.is_file()} for n, d in paths.items()}
    shutil.rmtree(store.local.directory)
    fresh = open_store(store.local.directory, store.tracking_uri, "test")
    assert fresh.load(run_id).key == key_of("lmc") and not store.local.directory.exists()
    for name in ("level 2", "lmc"):
        directory = fresh.find(key_of(name))
        assert directory is not None
        assert {p.name: p.read_bytes() for p in directory.rglob("*") if p.is_file()} == before[name]
    assert sorted(p.name for p in store.local.directory.iterdir()) == sorted(paths[n].name for n in ("level 2", "lmc"))
    assert fresh.find(key_of("never made")) is None


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "record.json"])
def test_altered_artifact_in_mlflow_is_refused(store: LineageStore, name: str) -> None:
    paths = commit_story(store.local)
    store.deliver(paths["level 2"])
    shutil.rmtree(store.local.directory)
    altered = 0
    for path in (store.local.directory.parent / "mlruns").rglob(name):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        altered += 1
    assert altered >= 3
    with pytest.raises(ValueError, match=f"{name} was altered"):
        store.find(key_of("level 2"))
    assert store.local.find(key_of("level 2")) is None


def test_missing_artifact_in_mlflow_is_named(store: LineageStore) -> None:
    paths = commit_story(store.local)
    store.deliver(paths["level 2"])
    shutil.rmtree(store.local.directory)
    for path in (store.local.directory.parent / "mlruns").rglob("checkpoint.safetensors"):
        path.unlink()
    with pytest.raises(ValueError, match="checkpoint.safetensors is missing"):
        store.find(key_of("level 2"))


def test_altered_local_node_is_not_delivered(store: LineageStore) -> None:
    paths = commit_story(store.local)
    (paths["level 0"] / "checkpoint.safetensors").write_bytes(b"altered")
    with pytest.raises(ValueError, match="checkpoint.safetensors was altered"):
        store.deliver(paths["level 0"])


def test_missing_parent_is_named(store: LineageStore) -> None:
    lost = LineageRecord(key_of("x"), "level", "orphan", parents=(Parent(key_of("gone"), "pruned-from"),))
    store.local.commit(lost, lambda directory: None)
    directory = store.local.find(lost.key)
    assert directory is not None
    with pytest.raises(LookupError, match=f"orphan: its parent {key_of('gone')[:16]}"):
        store.deliver(directory)
    assert all_runs(store) == []


def test_a_parent_that_is_only_in_mlflow_is_enough(store: LineageStore) -> None:
    paths = commit_story(store.local)
    store.deliver(paths["level 1"])
    for name in ("search", "level 0", "level 1"):
        shutil.rmtree(paths[name])
    store.deliver(paths["level 2"])
    assert len(all_runs(store)) == 4


@pytest.mark.long
def test_cached_run_ids_of_a_deleted_store_are_ignored(store: LineageStore, empty_store: Path, tmp_path: Path) -> None:
    paths = commit_story(store.local)
    first = store.deliver(paths["level 2"])
    client = MlflowClient(store.tracking_uri)
    for run in all_runs(store):  # marks them as deleted; the rows stay in the database
        client.delete_run(run.info.run_id)
    second = store.deliver(paths["level 2"])
    assert second != first and store.load(second).key == key_of("level 2")
    # simulate an empty database at the cached address: write the new database's address into the cache
    (tmp_path / "new").mkdir()
    shutil.copy(empty_store, tmp_path / "new" / "mlflow.db")
    fresh = open_store(store.local.directory, f"sqlite:///{tmp_path}/new/mlflow.db", "test")
    for path in (store.local.directory / ".delivered").iterdir():
        path.write_text(path.read_text().replace(f"{tmp_path}/mlflow.db", f"{tmp_path}/new/mlflow.db"))
    assert fresh.delivered(paths["level 2"]) == second
    third = fresh.deliver(paths["level 2"])
    assert third != second and fresh.delivered(paths["level 2"]) == third
    assert fresh.load(third).key == key_of("level 2") and len(all_runs(fresh)) == 4


def here() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_closed_port_is_quick_and_clear_and_hides_credentials(tmp_path: Path) -> None:
    uri = f"http://anna:secret@127.0.0.1:{closed_port()}"
    store = open_store(tmp_path / "runs", uri, "test")
    paths = commit_story(store.local)
    for call in (lambda: store.deliver(paths["level 0"]), lambda: store.run_id_of(key_of("x")), store.summaries):
        started = time.monotonic()
        with pytest.raises(ConnectionError) as caught:
            call()
        assert time.monotonic() - started < 5
        message = str(caught.value)
        assert "refused" in message and "\n" not in message
        assert "secret" not in message and "anna" not in message and "127.0.0.1" in message
    assert store.find(key_of("level 0")) == paths["level 0"]  # local runs need no server


@pytest.mark.long
def test_hanging_server_is_given_up(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        store = open_store(tmp_path / "runs", f"http://127.0.0.1:{listener.getsockname()[1]}", "test")
        started = time.monotonic()
        with pytest.raises(ConnectionError, match="no answer within"):
            store.run_id_of(key_of("x"))
        assert time.monotonic() - started < 20


@pytest.mark.long
def test_without_mlflow_nodes_stay_local(tmp_path: Path) -> None:
    script = (
        "import sys, importlib.util\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'mlflow' else find(name, *a)\n"
        "sys.modules['mlflow'] = None\n"
        "from pathlib import Path; from harness.lineage.store import open_store\n"
        "store = open_store(Path(sys.argv[1]), sys.argv[2])\n"
        "assert store.find(sys.argv[3]) is not None and store.find('0' * 64) is None\n"
        "assert store.run_id_of(sys.argv[3]) is None and store.summaries() == []\n"
        "store.deliver(store.local.find(sys.argv[3]))\n"
    )
    commit_story(LocalNodes(tmp_path / "runs"))
    arguments = [str(tmp_path / "runs"), f"sqlite:///{tmp_path}/mlflow.db", key_of("level 0")]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=here())
    assert (
        "ConnectionError: cannot deliver" in done.stderr
        and "needs mlflow, which is not installed; run: pip install" in done.stderr
    )


def test_an_offline_store_contacts_no_server(tmp_path: Path) -> None:
    store = open_store(tmp_path / "runs", offline=True)
    paths = commit_story(store.local)
    assert store.find(key_of("level 1")) == paths["level 1"] and store.find(key_of("x")) is None
    with pytest.raises(ConnectionError, match="no tracking URI is set"):
        store.deliver(paths["level 1"])


def test_reading_makes_no_database(tmp_path: Path) -> None:
    store = open_store(tmp_path / "runs", f"sqlite:///{tmp_path}/mlflow.db")
    assert store.find(key_of("x")) is None and store.summaries() == []
    with pytest.raises(LookupError, match="no run"):
        store.load("0" * 32)
    assert list(tmp_path.iterdir()) == []


def test_foreign_and_unknown_runs(store: LineageStore) -> None:
    client = MlflowClient(store.tracking_uri)
    foreign = client.create_run(client.create_experiment("other"), run_name="theirs").info.run_id
    with pytest.raises(ValueError, match="not logged by this harness"):
        store.load(foreign)
    with pytest.raises(LookupError, match="no run 'f00d'"):
        store.load("f00d")
    assert store.summaries() == []


def test_credentials_in_a_config_or_tag_do_not_reach_mlflow(store: LineageStore) -> None:
    inputs = {"uri": "https://a:secret@h/x"}
    record = LineageRecord(sha256_json(inputs), "search", "s", tags={"initialisation": "http://a:secret@h"})
    store.local.commit(record, lambda directory: None, inputs)
    store.deliver(store.local.path(record))
    (run,) = all_runs(store)
    assert "secret" not in str(run.data) and run.data.tags["initialisation"] == "http://***@h"
    assert run.data.params == {"uri": "https://***@h/x"}


def test_long_texts_are_cut_visibly(store: LineageStore) -> None:
    inputs = {"p": "p" * 9000}
    record = LineageRecord(sha256_json(inputs), "search", "s", tags={"initialisation": "c" * 9000})
    store.local.commit(record, lambda directory: None, inputs)
    store.deliver(store.local.path(record))
    (run,) = all_runs(store)
    for text in (run.data.tags["initialisation"], run.data.params["p"]):
        assert text.endswith("(cut; whole in record.json)")


def test_summaries_come_in_pages(store: LineageStore) -> None:
    paths = commit_story(store.local)
    for path in paths.values():
        store.deliver(path)
    everything = store.summaries()
    assert [s.key for s in everything] == [s.key for s in store.summaries(limit=100)]
    assert [s.name for s in store.summaries(limit=2)] == [s.name for s in everything[:2]]
    by_root = store.summaries(f"tags.`harness.root` = '{key_of('search')}'")
    assert {s.key for s in by_root} == {key_of(name) for name in paths if name != "dense"}
    level = next(s for s in everything if s.key == key_of("level 2"))
    assert level.parents == (Parent(key_of("level 1"), "pruned-from"),) and level.nest_key == key_of("search")
    assert level.metrics["test_error_percent"] == 6.0 and "signed_mask.safetensors" in level.files
