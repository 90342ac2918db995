"""Check the graph: parents exist and fit, and there is no cycle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import networkx

from harness.lineage.nodes.record import Parent
from harness.lineage.proof.copies import NodeCopies
from harness.lineage.proof.findings import Finding, Findings, contradiction

_FROM = {
    ("search", "initialised-from"): ("search", "level", "training"),
    ("level", "initialised-from"): ("search",),
    ("level", "pruned-from"): ("level",),
    ("level", "trained-from"): ("level",),
    ("training", "initialised-from"): ("search", "level", "training"),
    ("training", "masked-by"): ("level",),
    ("training", "trained-from"): ("level",),
    ("analysis", "compared"): ("level", "training"),
    ("analysis", "initialised-from"): ("search",),
}
"""Allowed kinds of a parent, by kind of the child and relation. A report may have parents of any kind."""
_NUM_PARENTS = {"search": (0, 1), "level": (1,), "training": (0, 1, 2), "analysis": (2,)}
"""Allowed numbers of parents, by kind of the child."""
_LEVELS_ON = {"initialised-from": 0, "pruned-from": 1, "trained-from": 0}
"""Level of the child minus level of the parent, by relation."""
_LAST = ("analysis", "report")
"""Kinds that are verified after all others."""


def check_origins(places: Mapping[str, NodeCopies], findings: Findings) -> None:
    """Check the parents of all runs, and that there is no cycle."""
    for place in places.values():
        try:
            findings.add(place, list(_parents(place, places)))
        except Exception as error:  # report it, and check the other runs
            findings.add(place, [contradiction(error)])
    graph: networkx.DiGraph[str] = networkx.DiGraph()
    graph.add_nodes_from(places)
    graph.add_edges_from((parent.key, place.key) for place in places.values() for parent in place.parents)
    circles = [keys for keys in networkx.strongly_connected_components(graph) if len(keys) > 1]
    circles += [{key} for key in networkx.nodes_with_selfloops(graph)]
    inside = {key: keys for keys in circles for key in sorted(keys)}
    for place in places.values():
        circle = inside.get(place.key, set())
        names = ", ".join(sorted(places[key].name for key in circle if key in places))
        # Report each cycle once, for its smallest key.
        holds = not circle or place.key != min(circle)
        findings.add(place, [Finding("cycle", holds, f"these runs are ancestors of one another: {names}")])


def _parents(place: NodeCopies, places: Mapping[str, NodeCopies]) -> Iterator[Finding]:
    """Check the number, status, kind and level of a run's parents."""
    if place.kind in _NUM_PARENTS:
        allowed, found = _NUM_PARENTS[place.kind], len(place.parents)
        if _tags(place).get("question") == "signed_init":
            allowed = (1,)  # the other network is drawn from a seed, so it is no run
        count = " or ".join(map(str, allowed))
        what = f"it has {found} parents, but a run of kind {place.kind!r} must have {count}"
        yield Finding("parents", found in allowed, what)
    for parent in place.parents:
        short = f"its parent {parent.key[:16]}… ({parent.relation})"
        other = places.get(parent.key)
        if other is None:
            yield Finding("parents", False, f"{short} is missing")
            continue
        yield Finding("parents", other.finished or not other.kind, f"{short}, {other.name!r}, is not finished")
        if place.kind != "report" and other.kind:
            kinds = _FROM.get((place.kind, parent.relation), ())
            what = f"{short} has kind {other.kind!r}, but must have kind {' or '.join(map(repr, kinds))}"
            what = what if kinds else f"{short} has a relation that kind {place.kind!r} must not have"
            yield Finding("parents", other.kind in kinds, what)
        if place.kind == "level" and other.kind == "level":
            yield _one_level_on(place, other, parent)


def _one_level_on(place: NodeCopies, other: NodeCopies, parent: Parent) -> Finding:
    """Check a level's number against that of its parent."""
    own, before = (int(text) if (text := _tags(p).get("level", "")).isdecimal() else -1 for p in (place, other))
    expected = before + _LEVELS_ON.get(parent.relation, 0)
    search = place.record.config.get("search", {}) if place.record else {}
    if search.get("one_shot") and parent.relation == "pruned-from":
        # One-shot pruning goes from level 0 directly to the density of the child's level.
        what = f"it is level {own}, pruned in one shot from level {before}; the parent must be level 0"
        return Finding("parents", before == 0 < own, what)
    what = f"it is level {own}, but {parent.relation} level {before}; it must be level {expected}"
    return Finding("parents", own == expected, what)


def _tags(place: NodeCopies) -> Mapping[str, str]:
    found = place.record or place.run
    return found.tags if found else {}


def in_order(places: Mapping[str, NodeCopies]) -> list[NodeCopies]:
    """Return all runs in an order that keeps few networks in memory.

    Final trainings follow directly after their level, then comes the next level. Comparisons and reports come last.
    """
    below: dict[str | None, list[NodeCopies]] = {}
    for place in places.values():
        first = place.parents[0].key if place.parents else None
        below.setdefault(first if first in places and place.kind not in _LAST else None, []).append(place)
    # Phase: depth-first order below each root
    ordered: dict[str, NodeCopies] = {}

    def visit(start: NodeCopies) -> None:
        waiting = [start]
        while waiting:
            place = waiting.pop()
            if place.key not in ordered:
                ordered[place.key] = place
                # pop() takes the last: levels sort first, so trainings are visited before levels
                waiting += sorted(below.get(place.key, []), key=lambda other: other.kind != "level")

    roots = sorted(below.get(None, []), key=lambda place: (place.kind in _LAST, place.kind != "search", place.name))
    for place in [*roots, *places.values()]:  # runs in a cycle have no root
        visit(place)
    return list(ordered.values())
