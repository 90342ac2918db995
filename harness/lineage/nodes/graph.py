"""The lineage as a graph over plain nodes: what came from what, and what is shown under what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from harness.config import drawn_before
from harness.lineage.nodes.record import LineageRecord, Parent

if TYPE_CHECKING:
    import networkx

_OTHER = "kaiming_normal"
"""The scheme that takes none of a network's own weights."""


@dataclass(frozen=True)
class RunSummary:
    """One run as lists and trees show it, read from its tags alone: no artifact is opened.

    `root` is the key of the topmost node this one is shown under; `run_id` is None for a node not delivered yet.
    `origin_run_ids` are those it had in the stores it was imported from.
    """

    key: str
    kind: str
    name: str
    parents: tuple[Parent, ...]
    nest_key: str | None
    root: str | None
    tags: dict[str, str]
    metrics: dict[str, float]
    files: dict[str, str]
    run_id: str | None
    status: str
    started_ms: int
    finished_ms: int
    parent_run_ids: tuple[str, ...] = ()
    origin_run_ids: tuple[str, ...] = ()
    experiment_id: str | None = None
    absent: tuple[str, ...] = ()
    """Files that the run lists and does not have, on purpose."""

    @classmethod
    def of(cls, record: LineageRecord, root: str | None = None) -> RunSummary:
        """Return the summary of a node that is known locally only."""
        return cls(
            key=record.key,
            kind=record.kind,
            name=record.name,
            parents=record.parents,
            nest_key=record.nest_key,
            root=root,
            tags=dict(record.tags),
            metrics=record.last_metrics(),
            files=dict(record.files),
            run_id=None,
            status="LOCAL",
            started_ms=record.started_ms,
            finished_ms=record.finished_ms,
        )

    @property
    def drawn_before(self) -> str | None:
        """In words how its network's own weights were drawn, if θ_init has them and they are drawn otherwise today."""
        draws = self.kind == "search" or (self.kind == "training" and "init_seed" in self.tags)
        # of a search the name alone says by which scheme
        other = self.tags.get("initialisation") == _OTHER or self.name.endswith(f" from {_OTHER}")
        return drawn_before(self.tags.get("model", ""), self.tags) if draws and not other else None

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON-able data."""
        return asdict(self)


class HasParents(Protocol):
    """The fields that the graph needs; LineageRecord and RunSummary both have them."""

    @property
    def key(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def parents(self) -> tuple[Parent, ...]: ...
    @property
    def nest_key(self) -> str | None: ...


N = TypeVar("N", bound=HasParents)


class LineageGraph(Generic[N]):
    """Nodes by key, with an edge from every parent to what was made from it.

    Raises ValueError when two different nodes have one key. Parents that are not among the nodes are allowed here and
    reported by `verify`.
    """

    def __init__(self, nodes: Iterable[N]) -> None:
        self.nodes: dict[str, N] = {}
        for node in nodes:
            if self.nodes.setdefault(node.key, node) is not node:
                raise ValueError(f"two nodes have the key {node.key[:16]}…: {self.nodes[node.key].name}, {node.name}")

    def children(self, key: str) -> list[N]:
        """Return the nodes made directly from this one, in the order given."""
        self._known(key)
        return [node for node in self.nodes.values() if any(parent.key == key for parent in node.parents)]

    def ancestors(self, key: str) -> list[N]:
        """Return everything this node was made from, in an order in which each comes after its own parents."""
        import networkx

        return self._sorted(networkx.ancestors(self._graph(key), key))

    def descendants(self, key: str) -> list[N]:
        """Return everything made from this node, in an order in which each comes after its own parents."""
        import networkx

        return self._sorted(networkx.descendants(self._graph(key), key))

    def path(self, start: str, end: str) -> list[N]:
        """Return the nodes of a shortest way from `start` to what was made from it; LookupError when there is none."""
        import networkx

        self._known(end)
        try:
            return [self.nodes[key] for key in networkx.shortest_path(self._graph(start), start, end)]
        except networkx.NetworkXNoPath:
            message = f"{self.nodes[end].name} ({end[:16]}…) was not made from {self.nodes[start].name} ({start[:16]}…)"
            raise LookupError(message) from None

    def way(self, start: str, end: str) -> list[N]:
        """Return the nodes of a shortest way between two, along parents and children; LookupError if there is none."""
        import networkx

        self._known(end)
        # through nodes that are there: an unknown parent in common says little
        graph = self._graph(start).subgraph(self.nodes).to_undirected()
        try:
            return [self.nodes[key] for key in networkx.shortest_path(graph, start, end)]
        except networkx.NetworkXNoPath:
            message = f"{self.nodes[start].name} and {self.nodes[end].name} have nothing to do with each other"
            raise LookupError(message) from None

    def nested(self) -> Mapping[str | None, list[N]]:
        """Return {key: nodes shown under it}; None holds the roots, and nodes whose place is not among the nodes."""
        places: dict[str | None, list[N]] = {}
        for node in self.nodes.values():
            places.setdefault(node.nest_key if node.nest_key in self.nodes else None, []).append(node)
        return places

    def verify(self) -> list[str]:
        """Return one line for each parent that is missing and each cycle; an empty list when there is none."""
        import networkx

        problems = [
            f"{node.name} ({node.key[:16]}…): its parent {parent.key[:16]}… ({parent.relation}) is missing"
            for node in self.nodes.values()
            for parent in node.parents
            if parent.key not in self.nodes
        ]
        for cycle in networkx.simple_cycles(self._graph()):
            names = [self.nodes[key].name for key in cycle if key in self.nodes]
            problems.append(f"cycle: {' → '.join([*names, names[0]])}; a node cannot come from itself")
        return problems

    def _known(self, key: str) -> None:
        if key not in self.nodes:
            raise LookupError(f"no lineage node with key {key[:16]}… among {len(self.nodes)}")

    def _graph(self, key: str | None = None) -> networkx.DiGraph[str]:
        import networkx

        if key is not None:
            self._known(key)
        graph: networkx.DiGraph[str] = networkx.DiGraph()
        graph.add_nodes_from(self.nodes)
        graph.add_edges_from((parent.key, node.key) for node in self.nodes.values() for parent in node.parents)
        return graph

    def _sorted(self, keys: set[str]) -> list[N]:
        import networkx

        graph = self._graph().subgraph(keys)
        # A cycle has no such order; verify reports it, and asking for relatives must still answer.
        order = networkx.topological_sort(graph) if networkx.is_directed_acyclic_graph(graph) else graph.nodes
        return [self.nodes[key] for key in order if key in self.nodes]
