"""Commands that ask: what is there, what is it, where did it come from."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from harness.lineage.browse import family, find_node, newest, relatives, tree_lines
from harness.lineage.graph import NodeSummary
from harness.lineage.store import LineageStore
from tools.lineage_commands.place import Place, Where
from tools.lineage_commands.printing import print_json, print_node, print_nodes

RunID = tyro.conf.Positional[str]


@dataclass(frozen=True)
class List:
    """List the newest nodes: searches, levels, final trainings and analyses."""

    limit: int = 100
    """How many at most."""
    place: Where = Place()

    def run(self) -> None:
        nodes = self.place.ask(lambda store: newest(store, self.limit))
        if self.place.json:
            print_json("list", nodes)
        elif nodes:
            print_nodes(nodes)
        else:
            print(f"nothing yet in {self.place.runs} or MLflow: launch a recipe first")


@dataclass(frozen=True)
class Show:
    """Show one node: what it is, what it came from, what was made from it, what it measured and which files it has."""

    run_id: RunID
    """Run ID or node key, or a unique beginning of one."""
    place: Where = Place()

    def run(self) -> None:
        def ask(store: LineageStore) -> tuple[NodeSummary, list[NodeSummary], list[NodeSummary]]:
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
    place: Where = Place()

    def run(self) -> None:
        def ask(store: LineageStore) -> tuple[NodeSummary, list[NodeSummary]]:
            node = find_node(store, self.run_id)
            return node, family(store, node)

        node, nodes = self.place.ask(ask)
        if self.place.json:
            print_json("tree", nodes, node=node.key)
            return
        lines = list(tree_lines(nodes))
        print_nodes([other for _, other in lines], [indent for indent, _ in lines], marked=node.key)
