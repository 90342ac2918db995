"""What can be proved of the graph: parents are there and of the right kind, nothing comes from itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import networkx

from harness.lineage.nodes.record import Parent
from harness.lineage.proof.copies import NodeCopies
from harness.lineage.proof.findings import Finding, Findings

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
"""Of which kind a parent is, by kind of the node and relation; a report is made of anything."""
_NUM_PARENTS = {"search": (0, 1), "level": (1,), "training": (0, 1, 2), "analysis": (2,)}
_LEVELS_ON = {"initialised-from": 0, "pruned-from": 1, "trained-from": 0}
_LAST = ("analysis", "report")


def check_origins(places: Mapping[str, NodeCopies], findings: Findings) -> None:
    """Check parents and cycles of all nodes."""
    for place in places.values():
        findings.add(place, _parents(place, places))
    graph: networkx.DiGraph[str] = networkx.DiGraph()
    graph.add_nodes_from(places)
    graph.add_edges_from((parent.key, place.key) for place in places.values() for parent in place.parents)
    circles = [keys for keys in networkx.strongly_connected_components(graph) if len(keys) > 1]
    circles += [{key} for key in networkx.nodes_with_selfloops(graph)]
    inside = {key: keys for keys in circles for key in sorted(keys)}
    for place in places.values():
        circle = inside.get(place.key, set())
        names = ", ".join(sorted(places[key].name for key in circle if key in places))
        # reported once for each circle
        holds = not circle or place.key != min(circle)
        findings.add(place, [Finding("cycle", holds, f"these come from one another: {names}")])


def _parents(place: NodeCopies, places: Mapping[str, NodeCopies]) -> Iterator[Finding]:
    if place.kind in _NUM_PARENTS:
        allowed, found = _NUM_PARENTS[place.kind], len(place.parents)
        if _tags(place).get("question") == "signed_init":
            allowed = (1,)  # of the other network a seed alone is recorded
        yield Finding("parents", found in allowed, f"a {place.kind} has {allowed} parents, this has {found}")
    for parent in place.parents:
        short = f"its parent {parent.key[:16]}… ({parent.relation})"
        other = places.get(parent.key)
        if other is None:
            yield Finding("parents", False, f"{short} is missing")
            continue
        yield Finding("parents", other.finished or not other.kind, f"{short}, {other.name!r}, is not finished")
        if place.kind != "report" and other.kind:
            kinds = _FROM.get((place.kind, parent.relation), ())
            yield Finding("parents", other.kind in kinds, f"{short} is a {other.kind}; it must be one of {kinds}")
        if place.kind == "level" and other.kind == "level":
            yield _one_level_on(place, other, parent)


def _one_level_on(place: NodeCopies, other: NodeCopies, parent: Parent) -> Finding:
    own, before = (int(text) if (text := _tags(p).get("level", "")).isdecimal() else -1 for p in (place, other))
    expected = before + _LEVELS_ON.get(parent.relation, 0)
    search = place.record.config.get("search", {}) if place.record else {}
    if search.get("one_shot") and parent.relation == "pruned-from":
        # pruned once, from level 0, to the density of its own level
        return Finding("parents", before == 0 < own, f"it is level {own}, pruned in one shot from level {before}")
    return Finding("parents", own == expected, f"it is level {own}, {parent.relation} level {before}")


def _tags(place: NodeCopies) -> Mapping[str, str]:
    found = place.record or place.run
    return found.tags if found else {}


def in_order(places: Mapping[str, NodeCopies]) -> list[NodeCopies]:
    """Return all nodes, each soon after its first parent, so that few networks need to be held at a time.

    What was trained from a level comes right after it, then the next level; comparisons come last.
    """
    below: dict[str | None, list[NodeCopies]] = {}
    for place in places.values():
        first = place.parents[0].key if place.parents else None
        below.setdefault(first if first in places and place.kind not in _LAST else None, []).append(place)
    ordered: dict[str, NodeCopies] = {}

    def visit(start: NodeCopies) -> None:
        waiting = [start]
        while waiting:
            place = waiting.pop()
            if place.key not in ordered:
                ordered[place.key] = place
                # popped from the end: trainings first, levels after them
                waiting += sorted(below.get(place.key, []), key=lambda other: other.kind != "level")

    roots = sorted(below.get(None, []), key=lambda place: (place.kind in _LAST, place.kind != "search", place.name))
    for place in [*roots, *places.values()]:  # what is in a circle has no root
        visit(place)
    return list(ordered.values())
