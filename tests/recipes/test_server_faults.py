"""Test a search while its tracking server fails.

Training never waits, and no run is lost.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

from harness.lineage.store import LineageStore, open_store
from tests.fault_proxy import Fault, FaultProxy, fault_proxy
from tests.free_port import free_port
from tests.recipes.launching import LIGHT, REPOSITORY, TINY, elsewhere, nodes, run_warm
from tests.tracking_server import server
from tests.warm import Running

pytestmark = pytest.mark.long


OPTIONS = [*TINY, *LIGHT, "--warmup-epochs", "1", "--level-epochs", "12", "--num-levels"]
LEVELS_A_FAULT = 8
"""Levels per fault. Longer levels keep the search running: a failed delivery may be retried only five levels later."""
# each fault begins in the middle of a delivery, at the next request whose first line contains these bytes
SHORT: list[tuple[bytes, Fault]] = [(b"/runs/log-batch", "answering 500"), (b"PUT ", "hanging")]
MORE: list[tuple[bytes, Fault]] = [
    (b"/runs/create", "hanging"),
    (b"/runs/update", "refusing"),  # this request would mark the run as finished
    (b"/logged-models", "answering 500"),
]
HELD_UP_SECONDS = 3.0
"""Longest allowed gap between two levels. A single probe of a hanging server takes 5 s."""


@dataclass
class Search:
    """A running search and the fault-injecting proxy between it and the server."""

    where: Path
    launch: Running
    proxy: FaultProxy
    direct: LineageStore

    def levels(self) -> int:
        """Return the number of levels committed on disk."""
        return len(list((self.where / "runs").glob("level-*/record.json")))

    def delivered(self) -> int:
        """Return the number of levels that the launch has recorded as delivered."""
        return len(list((self.where / "runs" / ".delivered").glob("level-*")))

    def wait(self, what: Callable[[], bool], seconds: float = 250) -> None:
        """Wait until `what()` is true; fail if the search ends before."""
        until = time.monotonic() + seconds
        while not what():
            assert self.launch.poll() is None and time.monotonic() < until, (self.where / "log").read_text()
            time.sleep(0.02)


@contextlib.contextmanager
def started(where: Path, num_levels: int, proxy: FaultProxy, direct: str) -> Iterator[Search]:
    """Start the search in a process that is killed at exit."""
    command = [str(REPOSITORY / "recipes" / "aws_digits.py"), *OPTIONS, str(num_levels)]
    # shorter than the default of three attempts of 30 s
    limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "4"}
    launch = Running(where, *command, log=where / "log", MLFLOW_TRACKING_URI=proxy.uri, **limits)
    try:
        yield Search(where, launch, proxy, open_store(where / "none", direct))
    finally:
        launch.kill()
        launch.wait()


def assert_finished_runs_are_whole(store: LineageStore) -> int:
    """Assert that each finished run is complete; return their number.

    It has all its files, and each metric point once.
    """
    client = MlflowClient(store.tracking_uri)
    finished = [node for node in store.summaries() if node.status == "FINISHED"]
    for node in finished:
        assert node.run_id is not None
        for name, digest, _ in store.stored_digests(node.run_id, [*node.files]):
            assert digest == node.files[name]
        record = store.load(node.run_id)
        for metric in ("train_loss", "test_error_percent"):
            points = client.get_metric_history(node.run_id, metric)
            if record.kind == "search":  # its row has one point for each level
                assert len({one.step for one in points}) == len(points)
                continue
            expected = [(one.step, one.timestamp_ms) for one in record.metrics if one.name == metric]
            assert sorted((one.step, one.timestamp) for one in points) == sorted(expected)
    return len(finished)


def gaps_seconds(where: Path) -> list[float]:
    """Return the seconds between each level and the next.

    In these gaps a launch could wait for the server.
    """
    levels = [record for _, record in sorted(nodes(where, "level").items())]
    return [(b["started_ms"] - a["finished_ms"]) / 1000 for a, b in zip(levels, levels[1:], strict=False)]


@pytest.mark.parametrize("faults", [SHORT, pytest.param(MORE, marks=pytest.mark.slow)], ids=["short", "more"])
def test_a_search_continues_through_server_faults_and_loses_no_run(prepared, empty_store, tmp_path, faults):
    """Inject one fault after another into a running search.

    The last one stays until the launch ends.
    """
    where, port, num_levels = elsewhere(prepared, tmp_path / "search"), free_port(), LEVELS_A_FAULT * len(faults)
    direct = f"http://127.0.0.1:{port}"
    shutil.copy(empty_store, tmp_path / "server.db")
    # Phase: search through the proxy while it injects the faults
    with fault_proxy(port) as proxy:
        with server(tmp_path, port), started(where, num_levels, proxy, direct) as search:
            for word, fault in faults:
                known = search.delivered()
                search.wait(lambda least=known: search.delivered() > least)  # deliveries work again
                proxy.fault_at(word, fault)
                search.wait(proxy.triggered.is_set)
                before, known = search.levels(), search.delivered()
                search.wait(lambda least=before: search.levels() >= least + 2)  # the training continues
                assert search.delivered() == known
                whole = assert_finished_runs_are_whole(search.direct)
                print(f"{fault}: {search.levels() - before} levels trained meanwhile, {whole} complete runs finished")
                if (word, fault) != faults[-1]:
                    proxy.heal()
            while search.levels() < num_levels + 1:
                assert search.launch.poll() is None, (where / "log").read_text()
                time.sleep(0.02)
            trained = time.monotonic()
            assert search.launch.wait(120) == 0, (where / "log").read_text()
            print(f"{fault} to the end: the launch ended {time.monotonic() - trained:.1f} s after its last level")
        # Phase: the launch finished, with undelivered levels and short gaps
        assert search.levels() == num_levels + 1 > search.delivered()
        assert "lineage.py sync` delivers it later" in (where / "log").read_text()
        gaps = gaps_seconds(where)
        print(f"between levels: at most {max(gaps):.2f} s, {sum(gaps) / len(gaps):.2f} s on average")
        assert max(gaps) < HELD_UP_SECONDS
        # Phase: restart the server and deliver the rest with `sync`, twice
        proxy.heal()
        with server(tmp_path, port):
            for _ in range(2):
                run_warm(where, str(REPOSITORY / "tools" / "lineage.py"), "sync", MLFLOW_TRACKING_URI=direct)
            store = open_store(tmp_path / "none", direct)
            keys = [record["key"] for kind in ("search", "level") for record in nodes(where, kind).values()]
            assert sorted(run.key for run in store.summaries()) == sorted(keys)
            assert assert_finished_runs_are_whole(store) == len(keys) == num_levels + 2
            assert {str(model.status) for model in models(store)} == {"READY"} and len(models(store)) == len(keys)
    assert order_of_delivery(where) == list(range(num_levels + 1))


def order_of_delivery(where: Path) -> list[int]:
    """Return the level numbers in the order of their delivery."""
    remembered = (where / "runs" / ".delivered").glob("level-*")
    level_of = {f"level-{one['key'][:16]}": int(one["tags"]["level"]) for one in nodes(where, "level").values()}
    return [level_of[path.stem] for path in sorted(remembered, key=lambda path: path.stat().st_mtime_ns)]


def models(store: LineageStore) -> list[object]:
    """Return all logged models on the server."""
    client = MlflowClient(store.tracking_uri)
    return list(client.search_logged_models([one.experiment_id for one in client.search_experiments()]))
