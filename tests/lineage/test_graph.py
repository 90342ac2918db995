"""Test graph queries against small graphs written by hand."""

import pytest

from harness.common.tables import tree_texts
from harness.lineage.browse.listing import tree_order
from harness.lineage.nodes.graph import LineageGraph, RunSummary
from harness.lineage.nodes.local_files import LocalNodes
from harness.lineage.nodes.record import LineageRecord, Parent
from tests.lineage.lineage_story import commit_story, key_of


def level(name: str, *parents: str) -> LineageRecord:
    return LineageRecord(key_of(name), "level", name, tuple(Parent(key_of(p), "pruned-from") for p in parents))


@pytest.fixture
def graph() -> LineageGraph[LineageRecord]:
    return LineageGraph([level("c", "b"), level("a"), level("b", "a"), level("d", "b", "a"), level("alone")])


def names(nodes: list[LineageRecord]) -> list[str]:
    return [node.name for node in nodes]


def test_relatives(graph: LineageGraph[LineageRecord]) -> None:
    assert names(graph.ancestors(key_of("c"))) == ["a", "b"] and names(graph.ancestors(key_of("a"))) == []
    assert names(graph.descendants(key_of("a")))[0] == "b" and set(names(graph.descendants(key_of("a")))) == set("bcd")
    assert names(graph.children(key_of("a"))) == ["b", "d"]
    assert names(graph.path(key_of("a"), key_of("c"))) == ["a", "b", "c"]
    assert graph.verify() == []


def test_no_path_and_unknown_node(graph: LineageGraph[LineageRecord]) -> None:
    with pytest.raises(LookupError, match=r"c \(.*was not made from alone"):
        graph.path(key_of("alone"), key_of("c"))
    for ask in (graph.ancestors, graph.descendants, graph.children):
        with pytest.raises(LookupError, match="no run with key"):
            ask(key_of("nobody"))


def test_missing_parents_and_cycles_are_reported_and_queries_still_work() -> None:
    graph = LineageGraph([level("a", "c"), level("b", "a"), level("c", "b"), level("d", "gone")])
    missing, cycle = graph.verify()
    assert "d (" in missing and key_of("gone")[:16] in missing and "missing" in missing
    assert cycle.startswith("cycle: ") and {"a", "b", "c"} <= set(cycle)
    assert {"a", "b"} <= set(names(graph.ancestors(key_of("c"))))


def test_self_parent_is_a_cycle() -> None:
    assert LineageGraph([level("a", "a")]).verify() == ["cycle: a → a; a run cannot be its own ancestor"]


def test_two_nodes_of_one_key_are_refused() -> None:
    with pytest.raises(ValueError, match="two runs have the key"):
        LineageGraph([level("a"), level("a")])


def test_tree_of_the_story(tmp_path_factory: pytest.TempPathFactory) -> None:
    nodes = LocalNodes(tmp_path_factory.mktemp("runs"))
    commit_story(nodes)
    drawn = tree_texts((depth, node.name) for depth, node in tree_order([RunSummary.of(r) for r in nodes.records()]))
    assert drawn == [
        "aws resnet20 digits s1",
        "├── aws resnet20 L00 d1.000",
        "├── aws resnet20 L01 d0.800",
        "└── aws resnet20 L02 d0.640",
        "    └── signed_mask resnet20 s1",
        "        └── lmc signed_mask dense",
        "dense resnet20 s1",
    ]
