"""What a person asks of the lineage: the newest nodes, one node, its family; from MLflow and local nodes together."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from harness.lineage.graph import LineageGraph, NodeSummary
from harness.lineage.local import read_record
from harness.lineage.record import LineageRecord
from harness.lineage.store import LineageStore

_MINIMUM_DIGITS = 4
_IDS_PER_REQUEST = 100


def newest(store: LineageStore, limit: int | None = 100) -> list[NodeSummary]:
    """Return the newest nodes, delivered or not, newest first; a few requests, whatever their number."""
    delivered = store.summaries(limit=limit)
    nodes = delivered + undelivered(store, {node.key for node in delivered})
    return sorted(nodes, key=lambda node: (-node.started_ms, node.name))[:limit]


def undelivered(store: LineageStore, known: set[str]) -> list[NodeSummary]:
    """Return the local nodes that have no run in MLflow; `known` are keys of runs, which need no asking."""
    known_digits = {key[:16] for key in known}
    paths = [path for path in store.local.directories() if _digits(path) not in known_digits]
    remembered = {path: run_id for path in paths if (run_id := store.delivered(path)) is not None}
    ids = sorted(set(remembered.values()))
    there: set[str | None] = set()
    for start in range(0, len(ids), _IDS_PER_REQUEST):
        chosen = ", ".join(f"'{run_id}'" for run_id in ids[start : start + _IDS_PER_REQUEST])
        there |= {node.run_id for node in store.summaries(f"attributes.run_id IN ({chosen})")}
    return _local_summaries(store, [path for path in paths if remembered.get(path) not in there - {None}])


def find_node(store: LineageStore, text: str) -> NodeSummary:
    """Return the node that a run ID or a key, or a unique beginning of one, names; LookupError otherwise."""
    if not re.fullmatch(rf"[0-9a-f]{{{_MINIMUM_DIGITS},64}}", text):
        raise LookupError(f"{text!r} is no run ID or key: give at least {_MINIMUM_DIGITS} of its hex digits")
    found: dict[str, NodeSummary] = {}
    if len(text) <= 32:
        found |= {node.key: node for node in store.summaries(f"attributes.run_id LIKE '{text}%'", limit=20)}
    if not found:
        found |= {node.key: node for node in store.summaries(f"tags.`harness.key` LIKE '{text}%'", limit=20)}
    if not found:
        paths = [path for path in store.local.directories() if _digits(path).startswith(text[:16])]
        found |= {node.key: node for node in _local_summaries(store, paths) if node.key.startswith(text)}
    if not found:
        raise LookupError(f"no run or node begins with {text!r}; `python tools/lineage.py list` shows what there is")
    if len(found) > 1:
        names = ", ".join(f"{short_id(node, 12)} ({node.name})" for node in list(found.values())[:5])
        raise LookupError(f"{text!r} is the beginning of more than one: {names}; give more digits")
    return next(iter(found.values()))


def family(store: LineageStore, node: NodeSummary) -> list[NodeSummary]:
    """Return all nodes below the same topmost node: a search with its levels, trainings and analyses."""
    root = node.root or node.key
    delivered = store.summaries(f"tags.`harness.root` = '{root}'")
    known = {other.key for other in delivered}
    nodes = delivered + [other for other in undelivered(store, known) if other.root == root]
    if node.key not in {other.key for other in nodes}:
        nodes.append(node)
    return sorted(nodes, key=lambda other: (other.started_ms, other.name))


def relatives(store: LineageStore, node: NodeSummary) -> tuple[list[NodeSummary], list[NodeSummary]]:
    """Return (parents, children) of a node, those in another family included; missing parents are left out."""
    near = {other.key: other for other in family(store, node)}
    parents = []
    for parent in node.parents:
        if parent.key in near:
            parents.append(near[parent.key])
        else:
            try:
                parents.append(find_node(store, parent.key))
            except LookupError:
                continue
    made = {other.key: other for other in store.summaries(f"tags.`harness.parents` LIKE '%{node.key}%'")}
    made |= {key: other for key, other in near.items() if any(parent.key == node.key for parent in other.parents)}
    return parents, sorted(made.values(), key=lambda other: (other.started_ms, other.name))


def tree_lines(nodes: list[NodeSummary]) -> Iterator[tuple[str, NodeSummary]]:
    """Yield (indentation drawn as lines, node) so that what is nested under a node follows it."""
    places = LineageGraph(nodes).nested()
    seen: set[str] = set()

    def below(key: str | None, indent: str) -> Iterator[tuple[str, NodeSummary]]:
        under = places.get(key, [])
        for number, node in enumerate(under, start=1):
            if node.key in seen:  # a planted cycle must not hang the tree
                continue
            seen.add(node.key)
            branch, rest = ("", "") if key is None else ("└─ ", "   ") if number == len(under) else ("├─ ", "│  ")
            yield indent + branch, node
            yield from below(node.key, indent + rest)

    yield from below(None, "")


def short_id(node: NodeSummary, digits: int = 8) -> str:
    """Return the beginning of the run ID, or of the key of a node that is not in MLflow yet."""
    return node.run_id[:digits] if node.run_id else f"{node.key[:digits]}*"


def columns(node: NodeSummary) -> dict[str, str]:
    """Return what a list shows of a node, by the name of the column; '–' where it has no such thing."""
    tags = node.tags
    error = node.metrics.get("test_error_percent")
    density = tags.get("density")
    return {
        "name": node.name,
        "method": " ".join(tags[tag] for tag in ("method", "kind_of_training") if tag in tags) or "–",
        "level": tags.get("level", "–"),
        "density": f"{float(density):.3f}" if density else "–",
        "test error": f"{error:.2f} %" if error is not None else "–",
        "seeds": f"{tags.get('init_seed', '–')}/{tags.get('sgd_seed', '–')}",
        "run": short_id(node),
        "date": datetime.fromtimestamp(node.started_ms / 1000).strftime("%Y-%m-%d %H:%M") if node.started_ms else "–",
    }


def _digits(directory: Path) -> str:
    """Return the first digits of a local node's key, which its directory is named by."""
    return directory.name.rpartition("-")[2]


def _local_summaries(store: LineageStore, directories: list[Path]) -> list[NodeSummary]:
    """Return summaries of local nodes; one that was altered is named in a warning and does not hide the rest."""
    summaries = []
    for directory in directories:
        try:
            record = read_record(directory)
            summaries.append(NodeSummary.of(record, _local_root(store, record)))
        except ValueError as error:
            warnings.warn(str(error), stacklevel=3)
    return summaries


def _local_root(store: LineageStore, record: LineageRecord) -> str:
    """Return the key of the topmost node a local one is shown under, as far up as local nodes lead."""
    passed = [record.key]
    while record.nest_key is not None and record.nest_key not in passed:
        passed.append(record.nest_key)
        directory = store.local.find(record.nest_key)
        if directory is None:
            break
        record = read_record(directory)
    return passed[-1]
