"""Commands that query the lineage: list, show, relate and compare runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tyro

from harness.common.tables import print_lines
from harness.lineage.browse.difference import Difference, diff
from harness.lineage.browse.find import (
    ancestors,
    descendants,
    family,
    find_node,
    newest,
    newest_local,
    path_steps,
    relatives,
    way,
)
from harness.lineage.browse.query import Query, parse_density, parse_since
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.store import LineageStore
from tools.lineage_commands.printing import (
    print_difference,
    print_json,
    print_node,
    print_nodes,
    print_path,
    print_related,
)
from tools.lineage_commands.store_options import StoreOptions, Where

RunID = tyro.conf.Positional[str]


@dataclass(frozen=True)
class List:
    """List the newest nodes: searches, levels, final trainings and analyses.

    Options narrow the list down together: `list --method lrr --density 0.1..0.3 --since 7d`.
    """

    experiment: str | None = None
    """Name of an MLflow experiment."""
    method: str | None = None
    """aws, lrr, …"""
    network: str | None = None
    """resnet20, …, of any width; with its width as it is shown, resnet20-w32, of that alone."""
    kind: str | None = None
    """search, level, training, analysis or report; or how a ticket was used: signed_mask, mask, retrain, dense, …"""
    level: int | None = None
    """Pruning level, 0 is the dense warm-up."""
    density: str | None = None
    """Kept share of the prunable weights, as 0.21 or 0.1..0.3, meant to three digits, as it is shown."""
    since: str | None = None
    """Started since this date, as 2026-01-31, or not longer ago than 30m, 12h, 7d, 2w."""
    limit: int = 100
    """How many at most."""
    mlflow: bool = False
    """Read MLflow, too: runs of other machines, and changes that people made there. So does --tracking-uri. Without
    either, MLflow is read only if there is no local run."""
    place: Where = StoreOptions()

    def query(self) -> Query:
        return Query(
            experiment=self.experiment,
            method=self.method,
            network=self.network,
            kind=self.kind,
            level=self.level,
            density=parse_density(self.density) if self.density is not None else None,
            since_ms=parse_since(self.since) if self.since is not None else None,
        )

    def run(self) -> None:
        # Phase: find the runs
        query, read = self.query(), [f"local runs in {self.place.runs}"]

        def ask(store: LineageStore) -> list[RunSummary]:
            del read[1:]
            wanted = self.mlflow or self.place.tracking_uri is not None
            any_local = next(store.local.directories(), None) is not None
            if store.tracking_uri is None or (any_local and not wanted):
                return newest_local(store, self.limit, query)
            nodes = newest(store, self.limit, query)
            read.append(f"MLflow at {store.server.address}")
            return nodes

        nodes = self.place.ask(ask)

        # Phase: print them; the last line says what was read
        if self.place.json:
            print_json("list", nodes)
            return
        if nodes:
            print_nodes(nodes)
        elif query == Query():
            print(f"no runs in {self.place.runs} or MLflow yet: launch a recipe first")
        else:
            print("no run matches; use fewer options to list more runs")
        print_lines("", f"read: {' and '.join(read)}" + ("" if read[1:] else "; --mlflow reads MLflow, too"))


@dataclass(frozen=True)
class Show:
    """Show one node: what it is, what it came from, what was made from it, what it measured and which files it has."""

    run_id: RunID
    """Run ID or node key, or a unique beginning of one."""
    place: Where = StoreOptions()

    def run(self) -> None:
        def ask(store: LineageStore) -> tuple[RunSummary, list[RunSummary], list[RunSummary]]:
            node = find_node(store, self.run_id)
            return (node, *relatives(store, node))

        node, parents, children = self.place.ask(ask)
        if self.place.json:
            near = {"parents": [other.key for other in parents], "children": [other.key for other in children]}
            everything = {other.key: other for other in (node, *parents, *children)}
            print_json("show", list(everything.values()), node=node.key, **near)
        else:
            print_node(node, parents, children)


@dataclass(frozen=True)
class Tree:
    """Show the whole search a node belongs to as a tree; the node itself is marked."""

    run_id: RunID
    """Run ID or node key, or a unique beginning of one."""
    place: Where = StoreOptions()

    def run(self) -> None:
        def ask(store: LineageStore) -> tuple[RunSummary, list[RunSummary]]:
            node = find_node(store, self.run_id)
            return node, family(store, node)

        node, nodes = self.place.ask(ask)
        if self.place.json:
            print_json("tree", nodes, node=node.key)
        else:
            print_related(nodes, node.key, as_tree=True)


@dataclass(frozen=True)
class Ancestors:
    """List everything a node was made from, oldest first, the node itself last."""

    run_id: RunID
    """Run ID or node key, or a unique beginning of one."""
    place: Where = StoreOptions()

    def run(self) -> None:
        _related("ancestors", self.place, self.run_id, lambda store, node: [*ancestors(store, node), node])


@dataclass(frozen=True)
class Descendants:
    """List everything made from a node, the node itself first."""

    run_id: RunID
    """Run ID or node key, or a unique beginning of one."""
    place: Where = StoreOptions()

    def run(self) -> None:
        _related("descendants", self.place, self.run_id, lambda store, node: [node, *descendants(store, node)])


def _related(
    command: str, place: StoreOptions, text: str, related: Callable[[LineageStore, RunSummary], list[RunSummary]]
) -> None:
    """Print the runs that `related` returns for the run that `text` names."""

    def ask(store: LineageStore) -> tuple[RunSummary, list[RunSummary]]:
        node = find_node(store, text)
        return node, related(store, node)

    node, nodes = place.ask(ask)
    if place.json:
        print_json(command, nodes, node=node.key)
    else:
        print_related(nodes, node.key)


@dataclass(frozen=True)
class Path:
    """Show how two nodes are related: the shortest way from one to the other, step by step."""

    start: RunID
    """Run ID or node key, or a unique beginning of one."""
    end: RunID
    """The other."""
    place: Where = StoreOptions()

    def run(self) -> None:
        def ask(store: LineageStore) -> list[RunSummary]:
            return way(store, find_node(store, self.start), find_node(store, self.end))

        nodes = self.place.ask(ask)
        steps = path_steps(nodes)
        if self.place.json:
            print_json("path", nodes, steps=steps)
        else:
            print_path(nodes, steps)


@dataclass(frozen=True)
class Diff:
    """Show in what two nodes differ: settings, data, seeds, code, packages; then their masks and signs, by layer.

    What is equal is not shown. Overlap is the Jaccard index of the kept weights; agreement is the share of the weights
    kept in both whose signs are equal (½ for unrelated signs).
    """

    first: RunID
    """Run ID or node key, or a unique beginning of one."""
    second: RunID
    """The other."""
    place: Where = StoreOptions()

    def run(self) -> None:
        def ask(store: LineageStore) -> tuple[RunSummary, RunSummary, Difference]:
            a, b = find_node(store, self.first), find_node(store, self.second)
            return a, b, diff(store, a, b)

        a, b, difference = self.place.ask(ask)
        if self.place.json:
            print_json("diff", [a, b], **difference.to_dict())
        else:
            print_difference(a, b, difference)
