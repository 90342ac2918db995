"""Test the delivery thread: order, retries and hanging servers."""

from __future__ import annotations

import atexit
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.common.digest import sha256_json
from harness.distributed.stop import StoppedError
from harness.distributed.world import StopRequest
from harness.lineage.nodes.record import LineageRecord
from harness.lineage.store import LineageStore, open_store
from harness.lineage.tracking.server import RefusedError
from harness.runs.delivery_thread import DeliveryThread

KEYS = [sha256_json(f"run {number}") for number in range(4)]


class Store:
    """Stand in for MLflow and record the delivered runs.

    `act` is called before each delivery and may raise or block.
    """

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.act = lambda name: None

    def deliver(self, store: LineageStore, directory: Path) -> str:
        name = directory.name.removeprefix("level-")
        self.act(name)
        self.taken.append(name)
        return f"run of {name}"


@pytest.fixture
def mlflow(monkeypatch) -> Store:
    made = Store()
    monkeypatch.setattr(LineageStore, "deliver", lambda store, directory: made.deliver(store, directory))
    monkeypatch.setattr(LineageStore, "tidy", lambda store: None)
    return made


@pytest.fixture
def courier(tmp_path: Path, mlflow: Store) -> Iterator[DeliveryThread]:
    store = open_store(tmp_path, f"sqlite:///{tmp_path}/never-made.db")
    for key in KEYS:
        store.local.commit(LineageRecord(key=key, kind="level", name=key[:4]), lambda directory: None)
    yield DeliveryThread(store)


def short(*numbers: int) -> list[str]:
    return [KEYS[number][:16] for number in numbers]


def test_runs_are_delivered_once_and_in_order(courier: DeliveryThread, mlflow: Store):
    for number in (2, 0, 0, 1):
        courier.send(KEYS[number])
    assert courier.run_id(KEYS[1]) == f"run of {KEYS[1][:16]}"
    courier.send(KEYS[2])
    courier.settle()
    assert mlflow.taken == short(2, 0, 1)


def test_a_hanging_server_blocks_no_call(courier: DeliveryThread, mlflow: Store):
    answers = threading.Event()
    mlflow.act = lambda name: answers.wait(60) and None
    began = time.monotonic()
    for key in KEYS:
        courier.send(key)
    assert time.monotonic() - began < 1.0 and mlflow.taken == []
    courier.settle(0.1)
    assert mlflow.taken == []
    answers.set()
    courier.settle()
    assert mlflow.taken == short(0, 1, 2, 3)


def away(name: str) -> None:
    raise ConnectionError("cannot deliver")


def test_failed_deliveries_are_retried_first_when_the_server_is_back(
    courier: DeliveryThread, mlflow: Store, capsys, tmp_path: Path
):
    mlflow.act = away
    courier.send(KEYS[0])
    assert courier.run_id(KEYS[0]) is None and courier.away
    courier.send(KEYS[1])
    courier.settle()
    assert f"tools/lineage.py sync --runs {tmp_path}` delivers it later" in capsys.readouterr().err
    mlflow.act = lambda name: None
    courier.send(KEYS[2])
    courier.settle()
    assert mlflow.taken == short(0, 1, 2) and not courier.away


def test_the_end_of_a_launch_retries_failed_deliveries(courier: DeliveryThread, mlflow: Store):
    with courier.working():
        mlflow.act = away
        courier.send(KEYS[0])
        courier.settle()
        mlflow.act = lambda name: None
    assert mlflow.taken == short(0)


def test_a_failing_launch_waits_briefly_and_raises_its_own_error(courier: DeliveryThread, mlflow: Store, monkeypatch):
    monkeypatch.setattr("harness.runs.delivery_thread.STOPPING_SECONDS", 0.2)
    answers = threading.Event()
    mlflow.act = lambda name: answers.wait(60) and None
    at_exit: list[object] = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    monkeypatch.setattr(atexit, "unregister", at_exit.remove)
    began = time.monotonic()
    with pytest.raises(ValueError, match="its own"), courier.working():
        courier.send(KEYS[0])
        assert at_exit
        raise ValueError("its own")
    assert time.monotonic() - began < 5 and not at_exit
    answers.set()


def test_a_missing_parent_is_a_warning_and_blocks_no_other_run(courier: DeliveryThread, mlflow: Store, capsys):
    def orphan(name: str) -> None:
        if name == KEYS[0][:16]:
            raise LookupError("its parent is nowhere")

    mlflow.act = orphan
    courier.send(KEYS[0])
    courier.send(KEYS[1])
    assert courier.run_id(KEYS[0]) is None
    assert "its parent is nowhere; the run stays local" in capsys.readouterr().err
    assert mlflow.taken == short(1)


REFUSALS = [RefusedError("experiment 'a' was deleted"), ValueError("checkpoint.safetensors was altered"), KeyError("x")]


@pytest.mark.parametrize("error", REFUSALS, ids=repr)
def test_no_error_of_a_delivery_ends_a_training_but_the_launch_fails_at_its_end(
    courier: DeliveryThread, mlflow: Store, capsys: pytest.CaptureFixture[str], error: Exception
):
    def refuse(name: str) -> None:
        raise error

    mlflow.act = refuse
    with pytest.raises(type(error), match="deleted.*2 run|altered|x"), courier.working():
        courier.send(KEYS[0])
        courier.settle()
        courier.send(KEYS[1])
        assert courier.run_id(KEYS[1]) is None
    assert capsys.readouterr().err.count("warning: ") == 1  # not for each run


def test_refused_runs_are_delivered_when_the_server_takes_them_again(courier: DeliveryThread, mlflow: Store):
    def deleted(name: str) -> None:
        raise RefusedError("experiment 'a' was deleted")

    mlflow.act = deleted
    with courier.working():
        courier.send(KEYS[0])
        courier.settle()
        with pytest.raises(RefusedError):
            courier.check()  # as at the start of a search
        mlflow.act = lambda name: None  # it was restored
        courier.send(KEYS[1])
    assert mlflow.taken == short(0, 1)


def test_waiting_for_the_server_heeds_a_request_to_stop(courier: DeliveryThread, mlflow: Store):
    answers = threading.Event()
    mlflow.act = lambda name: answers.wait(60) and None
    courier.send(KEYS[0])
    request = StopRequest()
    with request.listening(), pytest.raises(StoppedError):
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        courier.settle()
    answers.set()


def test_offline_starts_no_thread(tmp_path: Path):
    before = threading.active_count()
    courier = DeliveryThread(open_store(tmp_path, offline=True))
    courier.send(KEYS[0])
    assert courier.run_id(KEYS[0]) is None and threading.active_count() == before
