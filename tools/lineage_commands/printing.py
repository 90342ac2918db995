"""What the commands of tools/lineage.py print: tables for a person, one shape of JSON for a program.

Names and tags may come from somebody else's store: what a terminal would obey is written out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from harness.common.escape import for_terminal
from harness.lineage.browse.difference import Difference
from harness.lineage.browse.listing import columns, short_id
from harness.lineage.nodes.graph import RunSummary
from harness.masks.signs import overlap_by_chance

JSON_FORMAT = 1  # of what --json prints; raise it when a reader would misread a newer one


def print_json(command: str, nodes: Sequence[RunSummary], **more: Any) -> None:
    """Print {"format", "command", "nodes": [...]} and what more this command answers."""
    answer = {"format": JSON_FORMAT, "command": command, "nodes": [node.to_dict() for node in nodes], **more}
    json.dump(answer, sys.stdout, indent=1, ensure_ascii=True)  # so no terminal obeys what stands in it
    print()


def print_table(rows: Sequence[Mapping[str, str]], numbers: frozenset[str] = frozenset()) -> None:
    """Print rows under the names of their columns, those in `numbers` to the right."""
    rows = [{name: for_terminal(text) for name, text in row.items()} for row in rows]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    for row in ({name: name for name in widths}, *rows):
        cells = [
            text.rjust(widths[name]) if name in numbers else text.ljust(widths[name]) for name, text in row.items()
        ]
        print("  ".join(cells).rstrip())


def print_nodes(nodes: Sequence[RunSummary], indents: Sequence[str] = (), marked: str | None = None) -> None:
    """Print a line for each node and what the marks mean; `indents` draw a tree, with how each node came to be."""
    rows = []
    for number, node in enumerate(nodes):
        row = columns(node)
        if indents:
            row["name"] = indents[number] + row["name"]
            row["date"] += "  ◀" if node.key == marked else ""
            row["came by"] = ", ".join(dict.fromkeys(parent.relation for parent in node.parents)) or "–"
        rows.append(row)
    print_table(rows, frozenset({"level", "density", "test error"}))
    _print_legend(nodes)


def _print_legend(nodes: Sequence[RunSummary]) -> None:
    if any(node.run_id is None for node in nodes):
        print("\n* not in MLflow yet: the key of a local node; `python tools/lineage.py sync` delivers it")
    if any(node.run_id is not None and node.status != "FINISHED" for node in nodes):
        names = ", ".join(short_id(node) for node in nodes if node.run_id and node.status != "FINISHED")
        print(f"\nnot finished: {names}; `python tools/lineage.py sync` completes an interrupted delivery")


def print_node(node: RunSummary, parents: Sequence[RunSummary], children: Sequence[RunSummary]) -> None:
    """Print one node: its family, tags, last metrics and files."""
    known = {other.key: other for other in parents}
    lines = [
        f"{node.name}  ({node.kind}, {node.status.lower()})",
        f"  run    {node.run_id or 'not in MLflow yet'}",
        *(f"  origin {run_id}  (its run where it was made)" for run_id in node.origin_run_ids),
        f"  key    {node.key}",
        f"  date   {columns(node)['date']}",
        "came from" if node.parents else "came from nothing",
    ]
    for parent in node.parents:
        came = known.get(parent.key)
        name = f"{came.name}  {short_id(came)}" if came else f"{parent.key[:16]}… (missing)"
        lines.append(f"  {parent.relation:17}{name}")
    lines.append("made from it" if children else "nothing was made from it yet")
    for child in children:
        how = ", ".join(parent.relation for parent in child.parents if parent.key == node.key)
        lines.append(f"  {how:17}{child.name}  {short_id(child)}")
    metrics = {name: f"{value:.6g}" for name, value in node.metrics.items()}
    for title, values in (("tags", node.tags), ("metrics (last values)", metrics), ("files (SHA-256)", node.files)):
        width = max((len(name) for name in values), default=0)
        lines += [title, *(f"  {name:{width}}  {value}" for name, value in sorted(values.items()))]
    print("\n".join(for_terminal(line) for line in lines))


def print_path(nodes: Sequence[RunSummary], steps: Sequence[Mapping[str, str]]) -> None:
    """Print the nodes of a way beneath each other, and between them how one came from the other."""
    lines = []
    for number, node in enumerate(nodes):
        lines.append(f"{node.name}  {short_id(node)}")
        if number < len(steps):
            down = steps[number]["from"] == node.key
            lines.append(f"  ↓ {steps[number]['relation']}" if down else f"  ↑ was {steps[number]['relation']}")
    print("\n".join(for_terminal(line) for line in lines))


def print_difference(a: RunSummary, b: RunSummary, difference: Difference) -> None:
    """Print what differs, section by section, then the masks."""
    lines = [f"a  {a.name}  {short_id(a)}", f"b  {b.name}  {short_id(b)}"]
    for title, rows in difference.sections.items():
        width = max(map(len, rows))
        lines.append(title)
        lines += [f"  {name:{width}}  {_value(one)}  |  {_value(other)}" for name, (one, other) in rows.items()]
    if not difference.sections:
        lines.append("no difference in settings, data, seeds, code and packages")
    print("\n".join(for_terminal(line) for line in lines))
    _print_masks(difference)


def _print_masks(difference: Difference) -> None:
    total = difference.total
    if difference.layers is None or total is None:
        print(f"masks\n  {for_terminal(difference.why_no_masks)}")
        return
    if not difference.differing_layers:
        print(f"masks\n  equal: the same {total.kept_a:,} of {total.numel:,} weights with the same signs")
        return
    chance = overlap_by_chance(difference.layers)
    print(
        f"masks\n  a keeps {total.kept_a:,}, b {total.kept_b:,} of {total.numel:,} weights, {total.kept_both:,} both: "
        f"overlap {total.mask_overlap:.3f} ({chance:.3f} by chance)\n"
        f"  signs agree in {total.agreeing:,} of these, {100 * total.sign_agreement:.2f} %"
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
    print()
    print_table(rows, frozenset(rows[0]) - {"layer"})
    if equal := len(difference.layers) - len(rows):
        print(f"\nthe other {equal} layers are equal")


def _value(value: object) -> str:
    text = "–" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else text[:57] + "…"
