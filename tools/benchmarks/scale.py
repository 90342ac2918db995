"""Time lists, trees and masks in a store of 12,100 runs: 100 searches of 20 levels, five final trainings of each level.

One search is delivered by the harness itself. The rows of the other 99 are copies of its rows under other IDs and keys,
written into the database directly, whose digests do not hold. Lists, trees and masks never ask for them. The clock
starts after the imports and one tracking call, which opens the database.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

from harness.lineage.browse.find import ancestors, family, newest
from harness.lineage.browse.query import Query
from harness.lineage.nodes.code import code_version
from harness.lineage.nodes.local_files import LocalNodes, json_bytes
from harness.lineage.nodes.record import SIGNED_MASK, LineageRecord, Metric, Parent
from harness.lineage.reload import load_signed_mask
from harness.lineage.store import LineageStore, open_store
from harness.masks import Mask, SignedMask
from tools.benchmarks.measure import Goal, Row, seconds

KEEP = "HARNESS_MANY_RUNS"  # a directory to keep the made-up store in: making it takes minutes
START_MS, SEARCH_MS = 1_760_000_000_000, 10_000_000  # from the start of one search to the next
TABLES = "runs tags params metrics latest_metrics logged_models logged_model_tags logged_model_params"
TABLES += " logged_model_metrics inputs"


def scale(quick: bool) -> Iterator[Row]:
    """Make the store, and ask it each question several times, of a search in the middle: a cache knows the newest."""
    with tempfile.TemporaryDirectory() as directory:
        sizes = (4, 3, 2) if quick else (100, 20, 5)
        place = Path(os.environ.get(KEEP, directory)) / f"{sizes[0]}"
        runs, uri = place / "runs", f"sqlite:///{place / 'mlflow.db'}"
        if not (place / "made").exists():
            make(runs, uri, *sizes)
            (place / "made").touch()
        run_id = str(newest(open_store(runs, uri), 1, Query(kind="level", level=1))[0].run_id)
        asked: dict[str, Callable[[LineageStore], object]] = {
            "list, the newest 100": newest,
            "list --density 0.1..0.3 --kind level": partial(
                newest, query=Query(method="aws", kind="level", density=(0.1, 0.3))
            ),
            "tree of a search": lambda store: family(store, run_id),
            "ancestors": lambda store: ancestors(store, run_id),
            "load_signed_mask(run_id)": lambda store: load_signed_mask(run_id, uri, runs),
        }
        number = sizes[0] * (1 + sizes[1] * (1 + sizes[2]))
        for name, question in asked.items():
            took = [seconds(lambda: question(open_store(runs, uri))) for _ in range(3 if quick else 9)]  # noqa: B023
            note, extremes = f"{len(took)} times, the first {took[0]:.3f} s", (min(took), max(took))
            yield Row(f"{name}, {number:,} runs, SQLite [s]", median(took), Goal(most=1), note, extremes)


def make(runs: Path, uri: str, searches: int, levels: int, trainings: int) -> None:
    """Commit all local nodes, deliver the first search, and copy its rows for the others."""
    nodes, database = LocalNodes(runs), uri.removeprefix("sqlite:///")
    with patch("os.fsync"):
        keys = [commit_search(nodes, number, levels, trainings) for number in range(searches)]
    store: LineageStore = open_store(runs, uri, "many runs")
    first = {nodes.find(key): key for key in keys[0]}
    memory = {key: (directory, store.deliver(directory)) for directory, key in first.items() if directory}
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        models = [one.removeprefix("m-") for (one,) in connection.execute("SELECT model_id FROM logged_models")]
        ids = [run_id for _, run_id in memory.values()] + models
        originals = {table: connection.execute(f"SELECT * FROM {table}") for table in TABLES.split()}
        columns = {table: [column for column, *_ in found.description] for table, found in originals.items()}
        rows = {table: found.fetchall() for table, found in originals.items()}
        for number in range(1, searches):
            names = {one: digest(f"{one} {number}")[:32] for one in ids} | dict(zip(keys[0], keys[number], strict=True))
            for table, values in rows.items():
                copies = [copied(dict(zip(columns[table], row, strict=True)), names, number) for row in values]
                connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(columns[table]))})", copies)
            for key, (directory, run_id) in memory.items():
                told = json.loads((runs / ".delivered" / f"{directory.name}.json").read_bytes())
                path = nodes.find(names[key])
                assert path is not None
                told = json_bytes(dict.fromkeys(told, names[run_id]))
                (runs / ".delivered" / f"{path.name}.json").write_bytes(told)


def copied(row: dict[str, Any], names: dict[str, str], number: int) -> list[Any]:
    """Return a row of the first search under the names of another, and so much later."""
    for column, value in row.items():
        if column in ("start_time", "end_time"):
            row[column] = value + SEARCH_MS * number
        elif column == "input_uuid":
            row[column] = digest(f"{value} {number}")[:32]
        elif isinstance(value, str) and not column.startswith("artifact_"):  # the files are those of the first search
            row[column] = re.sub("[0-9a-f]{32,64}", lambda found: names.get(found[0], found[0]), value)
    return list(row.values())


def digest(text: str) -> str:
    """Return a made-up key."""
    return hashlib.sha256(text.encode()).hexdigest()


def commit_search(nodes: LocalNodes, number: int, levels: int, trainings: int) -> list[str]:
    """Commit a search with tags, settings and metrics like those of a real one; return the keys."""
    seeds = {"init_seed": "1", "sgd_seed": "1"}
    shared = {
        "method": "aws",
        "model": "resnet20",
        "data": "digits",
        "data_digest": digest("data"),
        "settings": "0" * 12,
    }
    keys: list[str] = []

    def commit(kind: str, name: str, **more: Any) -> str:
        keys.append(digest(f"{number} {len(keys)}"))
        start = START_MS + SEARCH_MS * number + 10_000 * len(keys)
        config = {
            "search": {"method": "aws", "num_levels": levels},
            "launch": {"world_size": 1},
            "argv": ["aws_digits.py"],
        }
        times: dict[str, Any] = {"started_ms": start, "finished_ms": start + 9000}
        record = LineageRecord(keys[-1], kind, name, config=config, code=code_version(), **times, **more)
        mask = Mask({"conv.weight": torch.ones(16, 16, 3, 3, dtype=torch.bool)})
        signed = SignedMask.of({"conv.weight": torch.ones(16, 16, 3, 3)}, mask)
        nodes.commit(record, lambda path: signed.save(path / SIGNED_MASK, {"level": 0}) if kind != "search" else None)
        return keys[-1]

    root = above = commit("search", "aws resnet20 digits i1 s1", tags=shared | seeds)
    for level in range(levels):
        density, title = 0.8**level, f"L{level:02d} d{0.8**level:.3f} aws resnet20"
        last = {"density": density, "num_remaining": 1e5, "test_error_percent": 3.0 + level / 10, "test_loss": 0.1}
        names = ("train_loss", "train_error_percent", "lr", "images_per_second", "flipped_signs")
        metrics = [Metric(name, 0.1, epoch, START_MS + epoch) for name in names for epoch in range(3)]
        metrics += [Metric(name, value, 3, START_MS + 3) for name, value in last.items()]
        tags = shared | {"level": f"{level:02d}", "density": f"{density:.6f}"}
        parents = (Parent(above, "pruned-from" if level else "initialised-from"),)
        more = {"nested_under": root, "metrics": tuple(metrics)}
        above = commit("level", title, parents=parents, tags=tags | seeds, **more)
        for trial in range(2, trainings + 2):
            drawn = {"kind_of_training": "signed_mask", "init_seed": str(trial), "sgd_seed": "1"}
            parents, name = (Parent(above, "masked-by"),), f"signed_mask {title} i{trial} s1"
            commit("training", name, parents=parents, tags=tags | drawn, metrics=tuple(metrics))
    return keys
