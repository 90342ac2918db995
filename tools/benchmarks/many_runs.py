"""A made-up store of 12,000 runs: 100 searches of 20 levels, five final trainings each, delivered and local.

One search is delivered by the harness itself; the other 99 are copies of its rows under other IDs and keys, written
into the database directly. The files of all runs are those of the first search. Digests of records do not hold for the
copies in MLflow (their local nodes are whole), which lists, trees and masks never ask for.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from harness.common.digest import sha256_file
from harness.config import to_json
from harness.lineage.nodes.code import code_version
from harness.lineage.nodes.local_files import CONFIG, RECORD, SUMS, LocalNodes, json_bytes, read_record
from harness.lineage.nodes.record import CHECKPOINT, SIGNED_MASK, LineageRecord, Metric, Parent
from harness.lineage.store import open_store
from harness.masks import Mask, SignedMask
from recipes.presets.small import digits

SEARCHES, LEVELS, TRAININGS = 100, 20, 5
START_MS = 1_760_000_000_000
SEARCH_MS = 10_000_000  # from the start of one search to the next
EXPERIMENT = "many runs"
_TABLES = (
    *("runs", "tags", "params", "metrics", "latest_metrics"),
    *("logged_models", "logged_model_tags", "logged_model_params", "logged_model_metrics", "inputs"),
)


@dataclass(frozen=True)
class ManyRuns:
    """Where the store lies, and one search of it to ask for."""

    directory: Path
    searches: int

    @property
    def tracking_uri(self) -> str:
        return f"sqlite:///{self.directory / 'mlflow.db'}"

    @property
    def runs(self) -> Path:
        return self.directory / "runs"


def make(directory: Path, searches: int = SEARCHES, levels: int = LEVELS, trainings: int = TRAININGS) -> ManyRuns:
    """Make the store in `directory`, or return the one that was made there before."""
    done = directory / "made.json"
    wanted = {"searches": searches, "levels": levels, "trainings": trainings}
    if not done.is_file() or json.loads(done.read_bytes()) != wanted:
        shutil.rmtree(directory, ignore_errors=True)
        nodes = LocalNodes(directory / "runs")
        made = ManyRuns(directory, searches)
        _commit_search(nodes, levels, trainings)
        store = open_store(made.runs, made.tracking_uri, EXPERIMENT)
        ids = {run_id for _, run_id in store.sync()}
        keys = {record.key for record in nodes.records()}
        names = ids | keys | _model_ids(directory / "mlflow.db")
        prefixes = _free_prefixes(names, searches - 1)
        _copy_rows(directory / "mlflow.db", prefixes, names)
        _copy_nodes(nodes, prefixes, keys)
        done.write_bytes(json_bytes(wanted))
    return ManyRuns(directory, searches)


def _key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _commit_search(nodes: LocalNodes, levels: int, trainings: int) -> None:
    """Commit the search that all others are copies of, with the tags, settings and metrics of a real one."""
    seeds = {"init_seed": "1", "sgd_seed": "1"}
    tags = {"method": "aws", "model": "resnet20", "data": "digits", "data_digest": _key("data"), "settings": "0" * 12}
    config = {"search": to_json(digits()), "launch": {"world_size": 1}, "argv": ["aws_digits.py"]}
    number = 0

    def commit(name: str, kind: str, title: str, **rest: Any) -> str:
        nonlocal number
        number += 1
        start = START_MS + 10_000 * number
        code, end = code_version(), start + 9000
        record = LineageRecord(
            _key(name), kind, title, config=config, code=code, started_ms=start, finished_ms=end, **rest
        )
        nodes.commit(record, lambda directory: _write_files(directory, number) if kind != "search" else None)
        return record.key

    root = commit("search", "search", "aws resnet20 digits i1 s1", tags=tags | seeds)
    above = root
    for level in range(levels):
        relation, density = ("pruned-from" if level else "initialised-from"), 0.8**level
        shared = tags | {"level": f"{level:02d}", "density": f"{density:.6f}"}
        above = commit(
            f"level {level}",
            "level",
            f"L{level:02d} d{density:.3f} aws resnet20",
            parents=(Parent(above, relation),),
            nested_under=root,
            tags=shared | seeds,
            metrics=_metrics(level, density),
        )
        for trial in range(trainings):
            commit(
                f"training {level} {trial}",
                "training",
                f"signed_mask L{level:02d} d{density:.3f} aws resnet20 i{trial + 2} s1",
                parents=(Parent(above, "masked-by"),),
                tags=shared | {"kind_of_training": "signed_mask", "init_seed": str(trial + 2), "sgd_seed": "1"},
                metrics=_metrics(level, density),
            )


def _metrics(level: int, density: float) -> tuple[Metric, ...]:
    names = ("train_loss", "train_error_percent", "lr", "images_per_second", "flipped_signs")
    by_epoch = [Metric(name, 0.1, epoch, START_MS + epoch) for name in names for epoch in range(3)]
    last = {"density": density, "num_remaining": 1e5, "test_error_percent": 3.0 + level / 10, "test_loss": 0.1}
    return (*by_epoch, *(Metric(name, value, 3, START_MS + 3) for name, value in last.items()))


def _write_files(directory: Path, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    params = {"conv.weight": torch.randn(16, 16, 3, 3, generator=generator)}
    mask = Mask({"conv.weight": torch.rand(16, 16, 3, 3, generator=generator) < 0.5})
    mask.apply_(params)
    SignedMask.of(params, mask).save(directory / SIGNED_MASK, {"level": 0})
    (directory / CHECKPOINT).write_bytes(b"made up")


def _model_ids(database: Path) -> set[str]:
    with sqlite3.connect(database) as connection:
        return {one.removeprefix("m-") for (one,) in connection.execute("SELECT model_id FROM logged_models")}


def _free_prefixes(names: set[str], count: int) -> list[str]:
    """Return four digits for each copy that no name begins with: one that did would be its own copy."""
    taken = {name[:4] for name in names}
    free = (f"{number:04x}" for number in range(1 << 16))
    return list(itertools.islice((digits for digits in free if digits not in taken), count))


def _renamer(names: set[str], prefix: str) -> Callable[[str], str]:
    """Return what puts the names of a copy in place of those of the first search."""
    pattern = re.compile(r"(?<![0-9a-f])([0-9a-f]{64}|[0-9a-f]{32})(?![0-9a-f])")

    def rename(found: re.Match[str]) -> str:
        # the first digits, since a local node's directory is named by them
        return f"{prefix}{found[0][4:]}" if found[0] in names else found[0]

    return lambda text: pattern.sub(rename, text)


def _copy_rows(database: Path, prefixes: list[str], names: set[str]) -> None:
    """Copy all rows of the first search under other names, and `SEARCH_MS` later each."""
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        for table in _TABLES:
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            rows = connection.execute(f"SELECT * FROM {table}").fetchall()
            place = ", ".join("?" * len(columns))
            for number, prefix in enumerate(prefixes, start=1):
                copies = _copies(table, columns, rows, _renamer(names, prefix), number)
                connection.executemany(f"INSERT INTO {table} VALUES ({place})", copies)


def _copies(
    table: str, columns: list[str], rows: list[tuple[Any, ...]], rename: Callable[[str], str], number: int
) -> Iterator[list[Any]]:
    for row in rows:
        copy = []
        for column, value in zip(columns, row, strict=True):
            if column in ("start_time", "end_time"):
                value += SEARCH_MS * number
            elif column == "input_uuid":
                value = _key(f"{value} {number}")[:32]
            elif isinstance(value, str) and column not in ("artifact_uri", "artifact_location"):
                value = rename(value)
            copy.append(value)
        yield copy


def _copy_nodes(nodes: LocalNodes, prefixes: list[str], names: set[str]) -> None:
    """Write the local nodes of the other searches: record and digests alone, the large files are left out."""
    originals = [(path, read_record(path).to_dict()) for path in nodes.directories()]
    delivered = nodes.directory / ".delivered"
    for number, prefix in enumerate(prefixes, start=1):
        rename = _renamer(names, prefix)
        for path, data in originals:
            record = LineageRecord.from_dict(json.loads(rename(json.dumps(data))))
            shift = SEARCH_MS * number
            record = replace(record, started_ms=record.started_ms + shift, finished_ms=record.finished_ms + shift)
            directory = nodes.path(record)
            directory.mkdir()
            (directory / RECORD).write_bytes(json_bytes(record.to_dict()))
            sums = {**record.files, RECORD: sha256_file(directory / RECORD)}
            lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items())]
            (directory / SUMS).write_text("".join(lines))
            shutil.copy(path / CONFIG, directory / CONFIG)
            memory = json.loads((delivered / f"{path.name}.json").read_bytes())
            copied = {address: f"{prefix}{run_id[4:]}" for address, run_id in memory.items()}
            (delivered / f"{directory.name}.json").write_bytes(json_bytes(copied))
