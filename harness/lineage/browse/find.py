"""Find runs by ID, by filter, or by their relation to others.

Local runs and MLflow runs are merged by key.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from harness.lineage.browse.listing import short_id
from harness.lineage.browse.query import Query
from harness.lineage.nodes.contents import suspects
from harness.lineage.nodes.graph import LineageGraph, RunSummary
from harness.lineage.nodes.index import IndexedRun, LocalIndex
from harness.lineage.nodes.local_files import RECORD, read_sums
from harness.lineage.nodes.origin import origins
from harness.lineage.nodes.record import SIGNED_MASK
from harness.lineage.store import LineageStore
from harness.lineage.tracking.delivery import MODEL_METRICS
from harness.lineage.tracking.registry import is_model_uri
from harness.lineage.tracking.server import (
    FAMILIES_TAG,
    KEY_TAG,
    ORIGIN_TAG,
    PARENTS_TAG,
    ROOT_TAG,
    family_digits,
    id_conditions,
)

_MINIMUM_DIGITS, _RUN_ID_DIGITS, _KEY_DIGITS = 4, 32, 64

Named = RunSummary | str
"""A run summary, or any text that `find_node` accepts."""


def newest(store: LineageStore, limit: int | None = 100, query: Query | None = None) -> list[RunSummary]:
    """Return the newest matching runs, newest first.

    This takes only a few server requests.

    Args:
        store: Local runs and their MLflow copies.
        limit: Largest number of runs, or None for all.
        query: Filter; None matches all runs.

    Raises:
        LookupError: The query names an unknown experiment.
        ValueError: The limit is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit {limit}: give 1 or more")
    query = query or Query()
    delivered = store.summaries(query.where, limit, query.experiment)
    index = LocalIndex(store.local)
    # Runs beyond the limit started before the oldest returned one. Only newer local runs can belong to the result.
    horizon_ms = delivered[-1].started_ms if limit is not None and len(delivered) >= limit else 0
    delivered = [_own_contents(store, index, node) for node in delivered]
    known = {node.key for node in delivered}
    newer = [entry for key, entry in index.entries.items() if entry.started_ms >= horizon_ms and key not in known]
    asked = [entry for entry in newer if query.fits(entry)]
    nodes = delivered + _summaries(index, _undelivered(store, asked, limit))
    if not nodes and query.experiment is not None:
        _check_experiment(store, index, query.experiment)
    return sorted(nodes, key=lambda node: (-node.started_ms, node.name))[:limit]


def _own_contents(store: LineageStore, index: LocalIndex, node: RunSummary) -> RunSummary:
    """Return an MLflow run, or the local run with its key if that has other contents."""
    entry = index.entries.get(node.key)
    names = suspects(entry.files, node.files) if entry is not None else []
    if entry is None or not (names or entry.files.keys() - node.files.keys()):
        return node
    directory = store.local.directory / entry.directory
    with contextlib.suppress(ValueError):  # the list is altered
        if read_sums(directory).get(RECORD) == node.files.get(RECORD):
            return node  # a copy; only the tag of a digest was edited
    other = store.delivery.remembered_other(directory)
    # A signed mask can have the same content in another format.
    if other is None and names in ([], [SIGNED_MASK]):
        return node
    return next((replace(own, other_run_id=node.run_id) for own in _summaries(index, [entry])), node)


def newest_local(store: LineageStore, limit: int | None = 100, query: Query | None = None) -> list[RunSummary]:
    """Return the newest matching local runs, newest first, from the index alone.

    Run IDs are those of the last delivery. Neither records nor MLflow are read. Arguments and errors as in `newest`.
    """
    # Phase: choose the runs.
    if limit is not None and limit < 1:
        raise ValueError(f"limit {limit}: give 1 or more")
    query = query or Query()
    index = LocalIndex(store.local)
    entries = [entry for entry in index.entries.values() if query.fits(entry)]
    if not entries and query.experiment is not None:
        names = {entry.experiment for entry in index.entries.values() if entry.experiment}
        if query.experiment not in names:
            raise LookupError(f"no experiment {query.experiment!r}; there are: {', '.join(sorted(names)) or 'none'}")
    chosen = sorted(entries, key=lambda entry: (-entry.started_ms, entry.name))[:limit]

    # Phase: add what other files know of them.
    origin = origins(store.local)
    nodes = []
    for entry in chosen:
        node = entry.summary(index.top(entry.key))
        if node.kind == "search":
            node = replace(node, metrics=_metrics_of_search(index, node.key))
        directory = store.local.directory / entry.directory
        run_id = store.delivered(directory)
        other = store.delivery.remembered_other(directory) if run_id is None else None
        status = "FINISHED" if run_id is not None else node.status
        ids = origin.get(entry.key, ())
        nodes.append(replace(node, run_id=run_id, status=status, other_run_id=other, origin_run_ids=ids))
    return nodes


def find_node(store: LineageStore, text: Named) -> RunSummary:
    """Find one run by its ID.

    Args:
        store: Local runs and their MLflow copies.
        text: An MLflow run ID, a key, a unique prefix of either, `runs:/` and one of them, or a `models:/` URI. For
            imported runs also the run ID in the original store. A RunSummary is returned as it is.

    Raises:
        LookupError: No run matches, or the prefix is ambiguous. Then the message lists the runs.
    """
    # Phase: read the ID.
    if isinstance(text, RunSummary):
        return text
    if is_model_uri(text):
        text = store.run_id_of_model(text)
    text = re.sub(r"^runs:/+([0-9a-f]+)/?$", r"\1", text)
    if not re.fullmatch(rf"[0-9a-f]{{{_MINIMUM_DIGITS},64}}", text):
        raise LookupError(
            f"{text!r} is not a run ID (hexadecimal, at least {_MINIMUM_DIGITS} digits); "
            f"`{store.list_command}` shows them"
        )
    # Phase: try each kind of ID. The first one with a complete ID counts. A prefix must be unique among all kinds.
    found: dict[str, RunSummary] = {}
    for way in (_by_run_id, _by_key, _by_local_key, _by_origin):
        if not found or len(text) not in (_RUN_ID_DIGITS, _KEY_DIGITS):
            found = way(store, text) | found
    found = found or _by_delivery(store, text)
    if not found:
        raise LookupError(f"no run ID or key begins with {text!r}; `{store.list_command}` shows the runs")
    if len(found) > 1:
        names = ", ".join(f"{short_id(node, 12)} ({node.name})" for node in list(found.values())[:5])
        raise LookupError(f"{text!r} matches more than one run: {names}; give more digits")
    return next(iter(found.values()))


def find_local(store: LineageStore, text: str) -> list[RunSummary]:
    """Return the local runs whose key begins with `text`, without asking the server."""
    return list(_by_local_key(store, text).values())


def _by_run_id(store: LineageStore, text: str) -> dict[str, RunSummary]:
    """Find MLflow runs by a run ID or its prefix."""
    if len(text) > _RUN_ID_DIGITS:
        return {}
    condition = f"= '{text}'" if len(text) == _RUN_ID_DIGITS else f"LIKE '{text}%'"
    return {node.key: node for node in store.summaries(f"attributes.run_id {condition}", limit=20)}


def _by_key(store: LineageStore, text: str) -> dict[str, RunSummary]:
    """Find MLflow runs by a key or its prefix."""
    condition = f"= '{text}'" if len(text) == _KEY_DIGITS else f"LIKE '{text}%'"
    # If several MLflow runs have one key, the last in this order wins: the oldest finished run.
    runs = store.summaries(f"tags.`{KEY_TAG}` {condition}", limit=20)
    index = LocalIndex(store.local) if runs else None
    runs = [_own_contents(store, index, node) for node in runs] if index is not None else []
    return {node.key: node for node in sorted(runs, key=lambda node: (node.status == "FINISHED", -node.started_ms))}


def _by_local_key(store: LineageStore, text: str) -> dict[str, RunSummary]:
    """Return the local runs with this key or prefix: {key: run}."""
    paths = [path for path in store.local.directories() if _digits(path).startswith(text[:16])]
    if not paths:
        return {}
    index = LocalIndex(store.local)
    entries = [entry for key, entry in index.entries.items() if key.startswith(text)]
    return {node.key: node for node in _summaries(index, entries)}


def _by_origin(store: LineageStore, text: str) -> dict[str, RunSummary]:
    """Find imported runs by their original run ID or its prefix."""
    if len(text) > _RUN_ID_DIGITS:
        return {}
    runs = store.summaries(f"tags.`{ORIGIN_TAG}` LIKE '%{text}%'", limit=20)
    found = {node.key: node for node in runs if any(origin.startswith(text) for origin in node.origin_run_ids)}
    if found:
        return found
    index = LocalIndex(store.local)
    keys = [key for key, ids in origins(store.local).items() if any(one.startswith(text) for one in ids)]
    return {node.key: node for node in _summaries(index, [index.entries[key] for key in keys if key in index.entries])}


def _by_delivery(store: LineageStore, text: str) -> dict[str, RunSummary]:
    """Find local runs by the run ID of an earlier delivery, if MLflow cannot be read, as with --offline."""
    if store.server.readable() or len(text) > _RUN_ID_DIGITS:
        return {}
    index = LocalIndex(store.local)
    entries = []
    for entry in index.entries.values():
        ids = store.delivery.remembered_anywhere(store.local.directory / entry.directory)
        entries += [entry] * any(run_id.startswith(text) for run_id in ids)
    return {node.key: node for node in _summaries(index, entries)}


def family(store: LineageStore, node: Named) -> list[RunSummary]:
    """Return all runs with the same root, oldest first.

    Usually this is a search with its levels, final trainings and analyses.
    """
    node = find_node(store, node)
    index = LocalIndex(store.local)
    nodes = _family(store, index, _top(store, index, node))
    return sorted({node.key: node, **nodes}.values(), key=_by_age)


def relatives(store: LineageStore, node: Named) -> tuple[list[RunSummary], list[RunSummary]]:
    """Return (parents, children) of a run, from all searches.

    Parents that cannot be found are left out.
    """
    node = find_node(store, node)
    index = LocalIndex(store.local)
    near = _family(store, index, _top(store, index, node))
    near |= _missing_parents(store, index, {**near, node.key: node}, [node])
    parents = [near[parent.key] for parent in node.parents if parent.key in near]
    made = {other.key: other for other in store.summaries(f"tags.`{PARENTS_TAG}` LIKE '%{node.key}%'")}
    local = [entry for key, entry in index.entries.items() if node.key in entry.parents and key not in {*near, *made}]
    made |= {other.key: other for other in _summaries(index, local)}
    made |= {key: other for key, other in near.items() if any(parent.key == node.key for parent in other.parents)}
    return parents, sorted(made.values(), key=_by_age)


def ancestors(store: LineageStore, node: Named) -> list[RunSummary]:
    """Return all ancestors of a run, parents before children.

    This takes a few server requests for each search involved. Parents that are neither local nor in MLflow are left
    out, and `verify` reports them.
    """
    node = find_node(store, node)
    return lineage_of(store, [node], up=True).ancestors(node.key)


def descendants(store: LineageStore, node: Named) -> list[RunSummary]:
    """Return all descendants of a run, parents before children.

    This takes a few server requests for each search involved.
    """
    node = find_node(store, node)
    return lineage_of(store, [node], down=True).descendants(node.key)


def way(store: LineageStore, start: Named, end: Named) -> list[RunSummary]:
    """Return a shortest path from `start` to `end`, both included.

    A path from an ancestor to its descendant is preferred. Otherwise the path may change direction, such as through a
    common ancestor.

    Raises:
        LookupError: A run cannot be found, or the two are not related.
    """
    start, end = find_node(store, start), find_node(store, end)
    graph = lineage_of(store, [start, end], up=True)
    for first, last in ((start, end), (end, start)):
        with contextlib.suppress(LookupError):
            nodes = graph.path(first.key, last.key)
            return nodes if first is start else nodes[::-1]
    return graph.way(start.key, end.key)


def path_steps(nodes: list[RunSummary]) -> list[dict[str, str]]:
    """Return the edge between each two neighbours on a path.

    Each edge is {"from": parent key, "to": child key, "relation": relation}, for either direction of the path.
    """
    steps = []
    for one, other in pairwise(nodes):
        made, used = (other, one) if any(parent.key == one.key for parent in other.parents) else (one, other)
        relation = next(parent.relation for parent in made.parents if parent.key == used.key)
        steps.append({"from": used.key, "to": made.key, "relation": relation})
    return steps


def lineage_of(
    store: LineageStore, nodes: list[RunSummary], *, up: bool = False, down: bool = False
) -> LineageGraph[RunSummary]:
    """Return the graph of the families that `nodes` belong to.

    A family is a root run and all runs nested below it.

    Args:
        store: Local runs and their MLflow copies.
        nodes: Runs to start from.
        up: Also include the families of ancestors.
        down: Also include the families of descendants.
    """
    index = LocalIndex(store.local)
    known = {node.key: node for node in nodes}
    waiting = list(dict.fromkeys(_top(store, index, node) for node in nodes))
    asked: set[str] = set()
    # Load one family after another, and queue the families of runs related to it.
    while waiting:
        top = waiting.pop()
        if top in asked:
            continue
        asked.add(top)
        new = _family(store, index, top)
        known |= {key: node for key, node in new.items() if key not in known}
        strangers: dict[str, RunSummary] = {}
        if up:
            strangers |= _missing_parents(store, index, known, list(known.values()))
        if down:
            strangers |= _made_elsewhere(store, index, known, top)
        known |= strangers
        waiting += [_top(store, index, other) for other in strangers.values()]
    return LineageGraph(known.values())


def _by_age(node: RunSummary) -> tuple[int, str]:
    return node.started_ms, node.name


def _digits(directory: Path) -> str:
    """Return the key digits in the directory name of a run."""
    return directory.name.rpartition("-")[2]


def _check_experiment(store: LineageStore, index: LocalIndex, name: str) -> None:
    """Raise LookupError if neither MLflow nor any local run knows the experiment."""
    names = {*store.experiments(), *(entry.experiment for entry in index.entries.values() if entry.experiment)}
    if name not in names:
        raise LookupError(f"no experiment {name!r}; there are: {', '.join(sorted(names)) or 'none'}")


def _undelivered(store: LineageStore, entries: list[IndexedRun], limit: int | None = None) -> list[IndexedRun]:
    """Keep the `limit` newest local runs that MLflow does not have.

    A remembered run ID is looked up, because somebody may have deleted the run in MLflow.
    """
    entries = sorted(entries, key=lambda entry: -entry.started_ms)[:limit]
    if not store.server.readable():
        return entries
    remembered = {entry.key: store.delivered(store.local.directory / entry.directory) for entry in entries}
    there = set(_by_ids(store, [run_id for run_id in remembered.values() if run_id is not None]))
    return [entry for entry in entries if remembered[entry.key] not in there]


def _by_ids(store: LineageStore, run_ids: list[str]) -> dict[str, RunSummary]:
    """Return {run ID: run} for the IDs that exist, in batched requests."""
    runs = (node for condition in id_conditions(run_ids) for node in store.summaries(condition))
    return {str(node.run_id): node for node in runs}


def _top(store: LineageStore, index: LocalIndex, node: RunSummary) -> str:
    """Return the key of a run's root.

    Ask MLflow if the local runs lead to a run that exists only there.
    """
    top = node.root or node.key
    if node.run_id is None and top not in index.entries:
        for other in store.summaries(f"tags.`{KEY_TAG}` = '{top}'", limit=1):
            return other.root or other.key
    return top


def _family(store: LineageStore, index: LocalIndex, top: str) -> dict[str, RunSummary]:
    """Return a root and all runs below it, by key.

    This takes one request.
    """
    delivered = store.summaries(f"tags.`{ROOT_TAG}` = '{top}'")
    nodes = {node.key: _own_contents(store, index, node) for node in delivered}
    places = {top, *nodes}
    local = [entry for key, entry in index.entries.items() if key not in nodes and index.top(key) in places]
    return nodes | {node.key: node for node in _summaries(index, local)}


def _missing_parents(
    store: LineageStore, index: LocalIndex, known: dict[str, RunSummary], nodes: list[RunSummary]
) -> dict[str, RunSummary]:
    """Find the parents of `nodes` that are not in `known`.

    Parents that exist nowhere are left out.
    """
    children = [node for node in nodes if any(parent.key not in known for parent in node.parents)]
    missing = {parent.key for node in children for parent in node.parents} - known.keys()
    found = {
        parent.key: parent
        for parent in _by_ids(store, [run_id for node in children for run_id in node.parent_run_ids]).values()
        if parent.key in missing
    }
    local = [index.entries[key] for key in missing - found.keys() if key in index.entries]
    return found | {node.key: node for node in _summaries(index, local)}


def _made_elsewhere(
    store: LineageStore, index: LocalIndex, known: dict[str, RunSummary], top: str
) -> dict[str, RunSummary]:
    """Return runs of other families with a parent in this family."""
    made = {node.key: node for node in store.summaries(f"tags.`{FAMILIES_TAG}` LIKE '%{family_digits(top)}%'")}
    local = [entry for entry in index.entries.values() if not known.keys().isdisjoint(entry.parents)]
    found = _summaries(index, [entry for entry in local if entry.key not in made and entry.key not in known])
    return {key: node for key, node in made.items() if key not in known} | {node.key: node for node in found}


def _summaries(index: LocalIndex, entries: list[IndexedRun]) -> list[RunSummary]:
    """Summarise local runs; skip altered records with a warning."""
    origin = origins(index.nodes) if entries else {}
    summaries = []
    for entry in entries:
        try:
            node = RunSummary.of(index.record(entry.key), index.top(entry.key))
            if node.kind == "search":
                node = replace(node, metrics=_metrics_of_search(index, node.key))
            summaries.append(replace(node, origin_run_ids=origin.get(entry.key, ())))
        except ValueError as error:
            warnings.warn(str(error), stacklevel=3)
    return summaries


def _metrics_of_search(index: LocalIndex, key: str) -> dict[str, float]:
    """Return the final metrics of the deepest local level of a search, as its MLflow run has them."""
    levels = [entry for entry in index.entries.values() if entry.nest_key == key and entry.kind == "level"]
    if not levels:
        return {}
    metrics = max(levels, key=lambda entry: (entry.level or "", entry.started_ms)).metrics
    return {name: metrics[name] for name in MODEL_METRICS if name in metrics}
