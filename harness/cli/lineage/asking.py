"""Commands that query the lineage: list, show, relate and compare runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tyro

from harness.cli.lineage.printing import (
    print_difference,
    print_json,
    print_node,
    print_nodes,
    print_path,
    print_related,
)
from harness.cli.lineage.store_options import StoreOptions, Where
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
from harness.lineage.browse.listing import short_id
from harness.lineage.browse.progress import unfinished_searches
from harness.lineage.browse.query import Query, parse_density, parse_since
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.nodes.local_files import LocalNodes
from harness.lineage.store import LineageStore

RunID = tyro.conf.Positional[str]


@dataclass(frozen=True)
class List:
    """List the newest runs: searches, levels, final trainings and comparisons.

    Options are filters, and a run must match all of them: `list --method lrr --density 0.1..0.3 --since 7d`.
    """

    experiment: str | None = None
    """Name of an MLflow experiment."""
    method: str | None = None
    """Pruning method, such as aws or lrr."""
    network: str | None = None
    """Network of any width, such as resnet20, or of one width, such as resnet20-w32."""
    kind: str | None = None
    """search, level, training, analysis or report. Or a kind of final training, such as signed_mask or dense."""
    level: int | None = None
    """Number of prunings. Level 0 is the dense warm-up."""
    density: str | None = None
    """Kept share of the prunable weights, such as 0.21 or 0.1..0.3. Three digits count."""
    since: str | None = None
    """Earliest start: a date such as 2026-01-31, or an age such as 30m, 12h, 7d or 2w."""
    limit: int = 100
    """Largest number of runs."""
    mlflow: bool = False
    """Also read MLflow: runs of other machines, and later changes in MLflow. --tracking-uri implies it. By default,
    MLflow is read only if there is no local run."""
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
            print_nodes(nodes, unfinished_searches(LocalNodes(self.place.runs), nodes))
        elif query == Query():
            print(f"no runs in {self.place.runs} or MLflow yet: launch a recipe first")
        else:
            print("no run matches; use fewer options to list more runs")
        print_lines("", f"read: {' and '.join(read)}" + ("" if read[1:] else "; --mlflow reads MLflow, too"))


@dataclass(frozen=True)
class Show:
    """Show one run: its results, IDs, parents, children, tags and files."""

    run_id: RunID
    """Run ID, key, or a unique prefix of either. `list` shows them."""
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
    """Show a run's whole search as a tree. The run is marked."""

    run_id: RunID
    """Run ID, key, or a unique prefix of either. `list` shows them."""
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
    """List all ancestors of a run, oldest first. The run comes last."""

    run_id: RunID
    """Run ID, key, or a unique prefix of either. `list` shows them."""
    place: Where = StoreOptions()

    def run(self) -> None:
        _related("ancestors", self.place, self.run_id, lambda store, node: [*ancestors(store, node), node])


@dataclass(frozen=True)
class Descendants:
    """List all descendants of a run. The run comes first."""

    run_id: RunID
    """Run ID, key, or a unique prefix of either. `list` shows them."""
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
    """Show the shortest path between two runs, step by step."""

    start: RunID
    """Run ID, key, or a unique prefix of either. `list` shows them."""
    end: RunID
    """The other run, in the same forms."""
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
    """Show the differences of two runs: settings, data, seeds, code and packages, then masks and signs by layer.

    Overlap is the Jaccard index of the kept weights. Sign agreement is the share of equal signs among the weights that
    both keep (½ for unrelated signs).
    """

    first: RunID
    """Run ID, key, or a unique prefix of either. `list` shows them."""
    second: RunID
    """The other run, in the same forms."""
    place: Where = StoreOptions()

    def run(self) -> None:
        def ask(store: LineageStore) -> tuple[RunSummary, RunSummary, Difference, dict[str, str]]:
            a, b = find_node(store, self.first), find_node(store, self.second)
            difference = diff(store, a, b)
            return a, b, difference, {} if self.place.json else _names_of_parents(store, difference)

        a, b, difference, names = self.place.ask(ask)
        if self.place.json:
            print_json("diff", [a, b], **difference.to_dict())
        else:
            print_difference(a, b, difference, names)


def _names_of_parents(store: LineageStore, difference: Difference) -> dict[str, str]:
    """Return the name and short run ID of each parent or ticket that differs, by key."""
    sections = difference.sections
    pairs = [*sections.get("came from", {}).values(), sections.get("settings", {}).get("ticket", ())]
    names = {}
    for key in {key for pair in pairs for key in pair if isinstance(key, str)}:
        try:
            parent = find_node(store, key)
            names[key] = f"{parent.name} {short_id(parent)}"
        except LookupError:
            names[key] = f"{key[:16]}… (missing)"
    return names
