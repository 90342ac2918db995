"""Seconds to list, to show a search and to load a mask in a store of 12,000 runs, and requests to a server for it.

The clock starts after the imports and one tracking call, which opens the database. Requests are counted as they leave,
of a server on the same database and from a directory without local nodes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from harness.lineage.browse.find import ancestors, family, newest
from harness.lineage.browse.query import Query
from harness.lineage.reload import load_signed_mask
from harness.lineage.store import LineageStore, open_store
from tools.benchmarks.many_runs import EXPERIMENT, LEVELS, SEARCHES, TRAININGS, ManyRuns, make
from tools.benchmarks.row import Row

GOAL_SECONDS, GOAL_REQUESTS = 1.0, 10
KEEP = "HARNESS_MANY_RUNS"  # a directory to keep the made-up store in: making it takes minutes

Question = Callable[[LineageStore], object]


def rows(quick: bool) -> list[Row]:
    """Make the store, ask it each question several times, then once more through a server."""
    with tempfile.TemporaryDirectory() as directory:
        sizes = (4, 3, 2) if quick else (SEARCHES, LEVELS, TRAININGS)
        made = make(Path(os.environ.get(KEEP, directory)) / f"{sizes[0]}", *sizes)
        questions = _questions(made)
        with _server(made, Path(directory)) as uri:
            requests = {name: _count(question, uri, Path(directory)) for name, question in questions.items()}
        num_runs = sizes[0] * (1 + sizes[1] * (1 + sizes[2]))
        return [
            row
            for name, question in questions.items()
            for row in (_seconds(name, question, made, num_runs, 3 if quick else 9), _requests(name, requests[name]))
        ]


def _questions(made: ManyRuns) -> dict[str, Question]:
    """Return what is asked: of a search in the middle, as the newest are what a cache would know."""
    store = open_store(made.runs, made.tracking_uri, EXPERIMENT)
    level = newest(store, 1, Query(kind="level", level=1))[0]
    run_id = str(level.run_id)
    query = Query(method="aws", kind="level", density=(0.1, 0.3))
    return {
        "list, the newest 100": lambda store: newest(store),
        "list --density 0.1..0.3 --kind level": lambda store: newest(store, 100, query),
        "tree of a search": lambda store: family(store, run_id),
        "ancestors": lambda store: ancestors(store, run_id),
        "load_signed_mask(run_id)": lambda store: load_signed_mask(run_id, store.tracking_uri, store.local.directory),
    }


def _seconds(name: str, question: Question, made: ManyRuns, num_runs: int, times: int) -> Row:
    open_store(made.runs, made.tracking_uri).run_id_of("0" * 64)  # the first tracking call
    seconds, busy = [], []
    for _ in range(times):
        started, worked = time.perf_counter(), time.process_time()
        question(open_store(made.runs, made.tracking_uri))
        seconds.append(time.perf_counter() - started)
        busy.append(time.process_time() - worked)
    return Row(
        name=f"{name}, {num_runs:,} runs, SQLite [s]",
        ours=median(seconds),
        reference=GOAL_SECONDS,
        ratio=median(seconds) / GOAL_SECONDS,
        goal=f"≤ {GOAL_SECONDS:.0f} s",
        reached=median(seconds) <= GOAL_SECONDS,
        low=min(seconds) / GOAL_SECONDS,
        high=max(seconds) / GOAL_SECONDS,
        note=f"{times} times, the first {seconds[0]:.3f} s; {median(busy):.3f} s on the processor; as many local nodes",
    )


def _requests(name: str, count: int) -> Row:
    ratio = count / GOAL_REQUESTS
    return Row(
        name=f"{name}, from a server [requests]",
        ours=count,
        reference=GOAL_REQUESTS,
        ratio=ratio,
        goal=f"≤ {GOAL_REQUESTS}",
        reached=count <= GOAL_REQUESTS,
        low=ratio,
        high=ratio,
        note="",
    )


def _count(question: Question, uri: str, place: Path) -> int:
    """Return how many requests a question sends, the one for a sign of life included."""
    import requests

    sent = 0
    send = requests.Session.send

    def counted(session: requests.Session, request: Any, **options: Any) -> Any:
        nonlocal sent
        sent += 1
        return send(session, request, **options)

    requests.Session.send = counted  # type: ignore[method-assign, assignment]
    try:
        question(open_store(place / "none", uri))
    finally:
        requests.Session.send = send  # type: ignore[method-assign]
    return sent


@contextlib.contextmanager
def _server(made: ManyRuns, place: Path) -> Iterator[str]:
    """Start a tracking server on a copy of the database."""
    import requests

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shutil.copy(made.directory / "mlflow.db", place / "served.db")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = ["--backend-store-uri", f"sqlite:///{place}/served.db", "--artifacts-destination", str(place / "artifacts")]
    with open(place / "server.log", "wb") as log:
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # seven processes for nothing
        process = subprocess.Popen([*command, *store], stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        until = time.monotonic() + 120
        while True:
            with contextlib.suppress(requests.RequestException):
                requests.get(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError((place / "server.log").read_text()[-2000:])
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()
