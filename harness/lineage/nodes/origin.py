"""Remember the original MLflow run IDs of imported runs.

They are kept in a separate directory beside the runs, because committed records never change.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from harness.common.files import read_json, write_atomically
from harness.lineage.nodes.local_files import LocalNodes, json_bytes
from harness.lineage.nodes.record import LineageRecord

IMPORTED = ".imported"


def remember_origin(nodes: LocalNodes, record: LineageRecord, run_ids: tuple[str, ...]) -> None:
    """Remember run IDs that a run has in other stores.

    Earlier remembered IDs are kept.
    """
    path = _path(nodes, nodes.path(record))
    path.parent.mkdir(parents=True, exist_ok=True)
    merged = list(dict.fromkeys((*_read(path).get(record.key, ()), *run_ids)))
    write_atomically(path, json_bytes({"key": record.key, "origin_run_ids": merged}), durable=False)


def origin_of(nodes: LocalNodes, directory: Path) -> tuple[str, ...]:
    """Return the original run IDs of the run in `directory`.

    The tuple is empty if the run was not imported.
    """
    return next(iter(_read(_path(nodes, directory)).values()), ())


def origins(nodes: LocalNodes) -> dict[str, tuple[str, ...]]:
    """Return {key: original run IDs} of all imported runs."""
    found: dict[str, tuple[str, ...]] = {}
    with contextlib.suppress(OSError):
        for path in (nodes.directory / IMPORTED).iterdir():
            if path.suffix == ".json":
                found |= _read(path)
    return found


def _path(nodes: LocalNodes, directory: Path) -> Path:
    return nodes.directory / IMPORTED / f"{directory.name}.json"


def _read(path: Path) -> dict[str, tuple[str, ...]]:
    """Read {key: run IDs}; a missing or damaged file gives {}."""
    try:
        data = read_json(path)
        ids = tuple(one for one in data["origin_run_ids"] if re.fullmatch("[0-9a-f]{32}", one))
        return {data["key"]: ids} if isinstance(data["key"], str) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
