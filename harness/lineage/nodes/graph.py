"""Represent the lineage as a graph of runs and as a tree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from harness.config import drawn_before
from harness.lineage.nodes.record import LineageRecord, Parent

if TYPE_CHECKING:
    import networkx

_OTHER = "kaiming_normal"
"""Initialisation scheme that does not use the network's default draw."""


@dataclass(frozen=True)
class RunSummary:
    """Summarise one run for lists and trees, without opening any artifact.

    This run is shown below the run with the key `nest_key`. The topmost run of that tree has the key `root`. `run_id`
    is None if the run is not delivered yet. `origin_run_ids` are its run IDs in the stores that it was imported from.
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
    """Files that the record lists, but that are deliberately missing in MLflow."""
    other_run_id: str | None = None
    """MLflow run with the same key and other contents than this local run, if there is one."""

    @classmethod
    def of(cls, record: LineageRecord, root: str | None = None) -> RunSummary:
        """Summarise a run that exists only locally."""
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
    def all_run_ids(self) -> tuple[str, ...]:
        """MLflow run IDs of this run in all stores that held it, newest first."""
        return tuple(dict.fromkeys((*([self.run_id] if self.run_id else []), *self.origin_run_ids)))

    @property
    def drawn_before(self) -> str | None:
        """Describe how an older version drew this run's initial parameters.

        None if the current version draws them in the same way.
        """
        draws = self.kind == "search" or (self.kind == "training" and "init_seed" in self.tags)
        # The name of a search tells its initialisation scheme. Other kinds have a tag.
        other = self.tags.get("initialisation") == _OTHER or self.name.endswith(f" from {_OTHER}")
        return drawn_before(self.tags.get("model", ""), self.tags, by_scheme=other) if draws else None

    @property
    def other_ways(self) -> dict[str, str]:
        """Subject → how an older version computed it, where the current one differs and the tags tell."""
        ways = {}
        if (drawn := self.drawn_before) is not None:
            ways["θ_init"] = f"drawn the other way: {drawn}"
        if self.kind == "analysis" and self.tags.get("bn_convention") == "ema" and "ema_start" not in self.tags:
            ways["ema statistics"] = "started the other way: from the interpolated ones"
        return ways

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON-serialisable data."""
        return asdict(self)


class HasParents(Protocol):
    """Fields that the graph needs, present in LineageRecord and RunSummary."""

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
    """Directed graph of runs, with edges from parents to children.

    Parents that are not in the graph are allowed. `verify` reports them.

    Raises:
        ValueError: Two different runs have the same key.
    """

    def __init__(self, nodes: Iterable[N]) -> None:
        self.nodes: dict[str, N] = {}
        for node in nodes:
            if self.nodes.setdefault(node.key, node) is not node:
                raise ValueError(f"two runs have the key {node.key[:16]}…: {self.nodes[node.key].name}, {node.name}")

    def children(self, key: str) -> list[N]:
        """Return the direct children of a run, in the given order."""
        self._known(key)
        return [node for node in self.nodes.values() if any(parent.key == key for parent in node.parents)]

    def ancestors(self, key: str) -> list[N]:
        """Return all ancestors of a run, parents before children."""
        import networkx

        return self._sorted(networkx.ancestors(self._graph(key), key))

    def descendants(self, key: str) -> list[N]:
        """Return all descendants of a run, parents before children."""
        import networkx

        return self._sorted(networkx.descendants(self._graph(key), key))

    def path(self, start: str, end: str) -> list[N]:
        """Return a shortest path from `start` down to its descendant `end`.

        The path includes both runs.

        Raises:
            LookupError: A run is unknown, or `end` is not a descendant of `start`.
        """
        import networkx

        self._known(end)
        try:
            return [self.nodes[key] for key in networkx.shortest_path(self._graph(start), start, end)]
        except networkx.NetworkXNoPath:
            message = f"{self.nodes[end].name} ({end[:16]}…) was not made from {self.nodes[start].name} ({start[:16]}…)"
            raise LookupError(message) from None

    def way(self, start: str, end: str) -> list[N]:
        """Return a shortest path between two runs, ignoring edge directions.

        The path includes both runs.

        Raises:
            LookupError: A run is unknown, or no path connects the two.
        """
        import networkx

        self._known(end)
        # Exclude unknown parents: a path through a missing run would explain little.
        graph = self._graph(start).subgraph(self.nodes).to_undirected()
        try:
            return [self.nodes[key] for key in networkx.shortest_path(graph, start, end)]
        except networkx.NetworkXNoPath:
            message = f"{self.nodes[start].name} and {self.nodes[end].name} are not related"
            raise LookupError(message) from None

    def nested(self) -> Mapping[str | None, list[N]]:
        """Return {key: runs shown directly below it}.

        The key None holds the roots, and the runs whose `nest_key` is not in the graph.
        """
        places: dict[str | None, list[N]] = {}
        for node in self.nodes.values():
            places.setdefault(node.nest_key if node.nest_key in self.nodes else None, []).append(node)
        return places

    def verify(self) -> list[str]:
        """Return one message for each missing parent and each cycle."""
        import networkx

        problems = [
            f"{node.name} ({node.key[:16]}…): its parent {parent.key[:16]}… ({parent.relation}) is missing"
            for node in self.nodes.values()
            for parent in node.parents
            if parent.key not in self.nodes
        ]
        for cycle in networkx.simple_cycles(self._graph()):
            names = [self.nodes[key].name for key in cycle if key in self.nodes]
            problems.append(f"cycle: {' → '.join([*names, names[0]])}; a run cannot be its own ancestor")
        return problems

    def _known(self, key: str) -> None:
        if key not in self.nodes:
            raise LookupError(f"no run with key {key[:16]}… among {len(self.nodes)} runs")

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
        # A graph with a cycle has no topological order. `verify` reports the cycle, and queries must still answer.
        order = networkx.topological_sort(graph) if networkx.is_directed_acyclic_graph(graph) else graph.nodes
        return [self.nodes[key] for key in order if key in self.nodes]
