"""Answers of tools/lineage.py: tables for a person, one shape of JSON for a program."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from harness.common.tables import print_fields, print_lines, print_table, tree_texts
from harness.lineage.browse.difference import Difference
from harness.lineage.browse.listing import NUMBERS, SPARE, columns, short_id, tree_order
from harness.lineage.nodes.graph import RunSummary

JSON_FORMAT = 1  # of what --json prints; raise it when a reader would misread a newer one


def print_json(command: str, nodes: Sequence[RunSummary], **more: Any) -> None:
    """Print {"format", "command", "nodes": [...]} and the other facts of this command's answer."""
    answer = {"format": JSON_FORMAT, "command": command, "nodes": [node.to_dict() for node in nodes], **more}
    json.dump(answer, sys.stdout, indent=1, ensure_ascii=True)  # so that a terminal obeys no character of it
    print()


def print_nodes(nodes: Sequence[RunSummary]) -> None:
    """Print a line for each node, and the meaning of the marks."""
    print_table(_rows(nodes), numbers=NUMBERS, whole=("run",), spare=SPARE)
    _print_legend(nodes)


def print_related(nodes: Sequence[RunSummary], marked: str, *, as_tree: bool = False) -> None:
    """Print a line for each node and its relations to its parents; the node with the key `marked` has a mark."""
    ordered = list(tree_order(nodes)) if as_tree else [(0, node) for node in nodes]
    names = tree_texts((depth, node.name) for depth, node in ordered)
    rows = []
    for name, (_, node), cells in zip(names, ordered, _rows([node for _, node in ordered]), strict=True):
        row = cells | {"name": name}
        row["run"] += "  ◀" if node.key == marked else ""
        row["came by"] = ", ".join(dict.fromkeys(parent.relation for parent in node.parents)) or "–"
        rows.append(row)
    number = next((number for number, (_, node) in enumerate(ordered) if node.key == marked), None)
    print_table(rows, numbers=NUMBERS, whole=("name", "run"), spare=SPARE, marked=number)
    _print_legend(nodes)


def _rows(nodes: Sequence[RunSummary]) -> list[dict[str, str]]:
    """Return the cells of each run, without the column of barriers if no run has one."""
    rows = [columns(node) for node in nodes]
    if not any("barrier" in node.metrics for node in nodes):
        for row in rows:
            del row["barrier"]
    return rows


def _print_legend(nodes: Sequence[RunSummary]) -> None:
    if any(node.run_id is None for node in nodes):
        print_lines("", "* not in MLflow yet: the key of a local node; `python tools/lineage.py sync` delivers it")
    if others := [node for node in nodes if node.drawn_before is not None]:
        names = ", ".join(short_id(node) for node in others[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        print_lines("", f"θ_init drawn the other way: {names}{more}; `show` says how")
    if names := ", ".join(short_id(node) for node in nodes if node.run_id and node.status != "FINISHED"):
        print_lines("", f"not finished: {names}; `python tools/lineage.py sync` completes an interrupted delivery")


def print_node(node: RunSummary, parents: Sequence[RunSummary], children: Sequence[RunSummary]) -> None:
    """Print one node: its family, tags, last metrics and files."""
    known = {other.key: other for other in parents}
    identity = [
        ("run", node.run_id or "not in MLflow yet"),
        *(("origin", f"{run_id}  (its run where it was made)") for run_id in node.origin_run_ids),
        ("key", node.key),
        ("date", columns(node)["date"]),
        *([("θ_init", f"drawn the other way: {node.drawn_before}")] if node.drawn_before else []),
    ]
    print_fields(identity, title=f"{node.name}  ({node.kind}, {node.status.lower()})")

    came_from = []
    for parent in node.parents:
        came = known.get(parent.key)
        came_from.append(
            (parent.relation, f"{came.name}  {short_id(came)}" if came else f"{parent.key[:16]}… (missing)")
        )
    print_fields(came_from, title="came from" if came_from else "came from nothing")
    made = [
        (
            ", ".join(parent.relation for parent in child.parents if parent.key == node.key),
            f"{child.name}  {short_id(child)}",
        )
        for child in children
    ]
    print_fields(made, title="made from it" if made else "nothing was made from it yet")

    metrics = {name: f"{value:.6g}" for name, value in node.metrics.items()}
    for title, values in (("tags", node.tags), ("metrics (last values)", metrics), ("files (SHA-256)", node.files)):
        print_fields(sorted(values.items()), title=title)


def print_path(nodes: Sequence[RunSummary], steps: Sequence[Mapping[str, str]]) -> None:
    """Print the nodes of a path beneath each other, and between two of them how one came from the other."""
    for number, node in enumerate(nodes):
        print_lines(f"{node.name}  {short_id(node)}")
        if number < len(steps):
            down = steps[number]["from"] == node.key
            print_lines(f"  ↓ {steps[number]['relation']}" if down else f"  ↑ was {steps[number]['relation']}")


def print_difference(a: RunSummary, b: RunSummary, difference: Difference) -> None:
    """Print the differences, section by section, then those of the masks."""
    print_fields([("a", f"{a.name}  {short_id(a)}"), ("b", f"{b.name}  {short_id(b)}")])
    for title, rows in difference.sections.items():
        print_fields(((name, _value(one), "|", _value(other)) for name, (one, other) in rows.items()), title=title)
    if not difference.sections:
        print_lines("no difference in settings, data, seeds, code and packages")
    print_lines("masks", style="bold")
    _print_masks(difference)


def _print_masks(difference: Difference) -> None:
    total = difference.total
    if difference.layers is None or total is None:
        print_lines(f"  {difference.why_no_masks}")
        return
    if not difference.differing_layers:
        print_lines(f"  equal: the same {total.kept_a:,} of {total.numel:,} weights with the same signs")
        return
    from harness.masks.signs import overlap_by_chance  # imports torch, which a list of runs does without

    chance = overlap_by_chance(difference.layers)
    print_lines(
        f"  a keeps {total.kept_a:,}, b {total.kept_b:,} of {total.numel:,} weights, {total.kept_both:,} both: "
        f"overlap {total.mask_overlap:.3f} ({chance:.3f} by chance)",
        f"  signs agree in {total.agreeing:,} of these, {100 * total.sign_agreement:.2f} %",
        "",
    )
    rows = [
        {
            "layer": row.name,
            "weights": f"{row.numel:,}",
            "density a": f"{row.density_a:.3f}",
            "density b": f"{row.density_b:.3f}",
            "overlap": f"{row.mask_overlap:.3f}",
            "signs agree": f"{row.sign_agreement:.3f}",
        }
        for row in difference.differing_layers
    ]
    print_table(rows, numbers=frozenset(rows[0]) - {"layer"})
    if equal := len(difference.layers) - len(rows):
        print_lines("", f"the other {equal} layers are equal")


def _value(value: object) -> str:
    return "–" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
