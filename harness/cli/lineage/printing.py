"""Print the answers of the lineage commands, as tables or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from harness.common.program import command
from harness.common.tables import print_fields, print_lines, print_table, tree_texts
from harness.lineage.browse.difference import Difference
from harness.lineage.browse.listing import NUMBERS, SPARE, columns, explain_barriers, short_id, tree_order
from harness.lineage.nodes.graph import RunSummary

_TITLES = {"what": "kind", "came from": "parents"}
"""Headings of sections of `diff` that have another name in its JSON output."""
JSON_FORMAT = 1  # version of the --json output; increase it if an older reader would misread newer output


def print_json(command: str, nodes: Sequence[RunSummary], **more: Any) -> None:
    """Print an answer as JSON.

    The object has "format", "command", "nodes" and the fields in `more`.
    """
    answer = {"format": JSON_FORMAT, "command": command, "nodes": [node.to_dict() for node in nodes], **more}
    json.dump(answer, sys.stdout, indent=1, ensure_ascii=True)  # ASCII has no terminal control characters from names
    print()


def print_nodes(nodes: Sequence[RunSummary], unfinished: Mapping[str, str]) -> None:
    """Print a table of runs, and a legend.

    Args:
        nodes: The runs.
        unfinished: Progress of unfinished searches by key, such as "5 of 9".
    """
    rows = _rows(nodes)
    for node, row in zip(nodes, rows, strict=True):
        row["level"] = unfinished.get(node.key, row["level"])
    print_table(rows, numbers=NUMBERS, whole=("run",), spare=SPARE)
    _print_legend(nodes)
    if names := ", ".join(f"{node.name} (level {unfinished[node.key]})" for node in nodes if node.key in unfinished):
        print_lines("", f"unfinished searches: {names}; run the same command again to resume")


def print_related(nodes: Sequence[RunSummary], marked: str, *, as_tree: bool = False) -> None:
    """Print a table of runs with their relations to their parents.

    The table has the given order, or is a tree. The run with the key `marked` gets a mark.
    """
    ordered = list(tree_order(nodes)) if as_tree else [(0, node) for node in nodes]
    names = tree_texts((depth, node.name) for depth, node in ordered)
    rows = []
    for name, (_, node), cells in zip(names, ordered, _rows([node for _, node in ordered]), strict=True):
        row = cells | {"name": name}
        row["run"] += "  ◀" if node.key == marked else ""
        row["relation"] = ", ".join(dict.fromkeys(parent.relation for parent in node.parents)) or "–"
        rows.append(row)
    number = next((number for number, (_, node) in enumerate(ordered) if node.key == marked), None)
    print_table(rows, numbers=NUMBERS, whole=("name", "run"), spare=SPARE, marked=number)
    _print_legend(nodes)


def _rows(nodes: Sequence[RunSummary]) -> list[dict[str, str]]:
    """Return the cells of each run, without columns that tell nothing.

    These are the barriers if no run has one, and the data set if all runs have the same.
    """
    rows = [columns(node) for node in nodes]
    no_barriers = not any("barrier" in node.metrics for node in nodes)
    same_data = len({node.tags["data"] for node in nodes if "data" in node.tags}) <= 1
    for row in rows:
        for name in ("barrier",) * no_barriers + ("data",) * same_data:
            del row[name]
    return rows


def _print_legend(nodes: Sequence[RunSummary]) -> None:
    """Explain the marks in a table and name unusual runs.

    These are unfinished runs, and runs of older versions that computed something in another way.
    """
    if any(node.run_id is None and node.other_run_id is None for node in nodes):
        print_lines("", f"* key of a local run that is not in MLflow yet; `{command('lineage sync')}` delivers it")
    if told := explain_barriers(nodes):
        print_lines("", told)
    if others := [node for node in nodes if node.other_run_id is not None]:
        names = ", ".join(f"{short_id(node)} ({node.other_run_id})" for node in others[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        print_lines("", f"≠ an MLflow run has this key, but other contents: {names}{more}; `verify` tells more")
    for subject in dict.fromkeys(subject for node in nodes for subject in node.other_ways):
        others = [node for node in nodes if subject in node.other_ways]
        names = ", ".join(short_id(node) for node in others[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        way = others[0].other_ways[subject].partition(":")[0]
        print_lines("", f"{subject} {way}: {names}{more}; `show` tells how")
    if names := ", ".join(short_id(node) for node in nodes if node.run_id and node.status != "FINISHED"):
        print_lines("", f"not finished: {names}; `{command('lineage sync')}` completes an interrupted delivery")


def print_node(node: RunSummary, parents: Sequence[RunSummary], children: Sequence[RunSummary]) -> None:
    """Print one run: its results, IDs, parents, children, tags and files."""
    # Phase: results, errors and barriers first. Metrics of the machine are only in the JSON output.
    print_lines(f"{node.name}  ({node.kind}, {node.status.lower()})", style="bold")
    results = [name for name in node.metrics if not name.startswith("system/")]
    results.sort(key=lambda name: (not ("error" in name or "barrier" in name), name))
    if results:
        print_fields(((name, f"{node.metrics[name]:.6g}") for name in results), title="results (last values)")

    # Phase: IDs
    known = {other.key: other for other in parents}
    identity = [
        ("run", node.run_id or "not in MLflow yet"),
        *(("origin", f"{run_id}  (its run ID in its original store)") for run_id in node.origin_run_ids),
        ("key", node.key),
        ("date", columns(node)["date"]),
        *node.other_ways.items(),
    ]
    print_fields(identity, title="IDs")

    # Phase: parents and children
    came_from = []
    for parent in node.parents:
        came = known.get(parent.key)
        came_from.append(
            (parent.relation, f"{came.name}  {short_id(came)}" if came else f"{parent.key[:16]}… (missing)")
        )
    print_fields(came_from, title="parents" if came_from else "no parents")
    made = [
        (
            ", ".join(parent.relation for parent in child.parents if parent.key == node.key),
            f"{child.name}  {short_id(child)}",
        )
        for child in children
    ]
    print_fields(made, title="children" if made else "no children yet")

    # Phase: tags and files
    for title, values in (("tags", node.tags), ("files (SHA-256)", node.files)):
        print_fields(sorted(values.items()), title=title)
    if len(results) < len(node.metrics):
        print_lines("--json also shows system metrics")


def print_path(nodes: Sequence[RunSummary], steps: Sequence[Mapping[str, str]]) -> None:
    """Print the runs on a path, with the relation between neighbours."""
    for number, node in enumerate(nodes):
        print_lines(f"{node.name}  {short_id(node)}")
        if number < len(steps):
            down = steps[number]["from"] == node.key
            print_lines(f"  ↓ {steps[number]['relation']}" if down else f"  ↑ was {steps[number]['relation']}")


def print_difference(a: RunSummary, b: RunSummary, difference: Difference, names: Mapping[str, str]) -> None:
    """Print the differences between two runs and between their signed masks.

    Args:
        a: One run.
        b: The other.
        difference: Their differences.
        names: Name and run ID of parents by key.
    """
    print_fields((letter, node.name, _seeds(node), short_id(node)) for letter, node in (("a", a), ("b", b)))
    for title, rows in difference.sections.items():
        shown = {name: pair for name, pair in rows.items() if name != "argv" or "command" not in rows}
        fields = ((name, _value(one, names), "|", _value(other, names)) for name, (one, other) in shown.items())
        print_fields(fields, title=_TITLES.get(title, title))
    if not difference.sections:
        print_lines("no difference in settings, data, seeds, code or packages")
    print_lines("masks", style="bold")
    _print_masks(difference)


def _print_masks(difference: Difference) -> None:
    """Print the overlap and sign agreement of two signed masks."""
    # Phase: masks that are equal or cannot be compared
    total = difference.total
    if difference.layers is None or total is None:
        print_lines(f"  {difference.why_no_masks}")
        return
    if not difference.differing_layers:
        print_lines(f"  equal: the same {total.kept_a:,} of {total.numel:,} weights with the same signs")
        return
    from harness.masks.signs import overlap_by_chance  # imported late, because listing runs must not load torch

    # Phase: all layers, then each differing layer
    chance = overlap_by_chance(difference.layers)
    print_lines(
        f"  of {total.numel:,} weights, a keeps {total.kept_a:,}, b keeps {total.kept_b:,}, both {total.kept_both:,}: "
        f"overlap {total.mask_overlap:.3f} ({chance:.3f} by chance)",
        f"  signs agree in {total.agreeing:,} of the weights kept by both, {100 * total.sign_agreement:.2f} %",
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


def _seeds(node: RunSummary) -> str:
    """Return the seeds of a run, such as "init_seed 1, sgd_seed 2"."""
    return ", ".join(f"{name} {node.tags[name]}" for name in ("init_seed", "sgd_seed") if name in node.tags)


def _value(value: object, names: Mapping[str, str]) -> str:
    if isinstance(value, str):
        return names.get(value, value)
    return "–" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
