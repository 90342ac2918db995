"""What exists and where it came from: list, show, tree and sync, from MLflow and the local nodes together.

python tools/lineage.py list
python tools/lineage.py show RUN_ID
python tools/lineage.py tree RUN_ID
python tools/lineage.py sync
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from harness.lineage.browse import columns, family, find_node, newest, relatives, short_id, tree_lines
from harness.lineage.graph import NodeSummary
from harness.lineage.store import DEFAULT_DIRECTORY, DEFAULT_EXPERIMENT, LineageStore, open_store


@dataclass(frozen=True)
class Place:
    """Where to look."""

    runs: Path = DEFAULT_DIRECTORY
    """Directory of the local nodes."""
    tracking_uri: str | None = None
    """MLflow store; default MLFLOW_TRACKING_URI, or sqlite:///mlflow.db in the working directory."""
    experiment: str = DEFAULT_EXPERIMENT
    """Experiment that `sync` delivers to."""
    offline: bool = False
    """Look at local nodes alone."""
    json: bool = False
    """Print JSON instead of a table."""

    def open(self) -> LineageStore:
        return open_store(self.runs, self.tracking_uri, self.experiment, offline=self.offline)


Where = Annotated[Place, tyro.conf.OmitArgPrefixes]


@dataclass(frozen=True)
class List:
    """List the newest nodes: searches, levels, final trainings and analyses."""

    limit: int = 100
    """How many at most."""
    place: Where = Place()

    def run(self) -> None:
        nodes = _with_fallback(self.place, lambda store: newest(store, self.limit))
        if self.place.json:
            _print_json([node.to_dict() for node in nodes])
            return
        if not nodes:
            print(f"nothing yet in {self.place.runs} or MLflow: launch a recipe first")
            return
        _print_table([columns(node) for node in nodes])
        _print_legend(nodes)


@dataclass(frozen=True)
class Show:
    """Show one node: what it is, what it came from, what was made from it, what it measured and which files it has."""

    run_id: tyro.conf.Positional[str]
    """Run ID or node key, or a unique beginning of one."""
    place: Where = Place()

    def run(self) -> None:
        def ask(store: LineageStore) -> tuple[NodeSummary, list[NodeSummary], list[NodeSummary]]:
            node = find_node(store, self.run_id)
            return (node, *relatives(store, node))

        node, parents, children = _with_fallback(self.place, ask)
        if self.place.json:
            family = {"parents": parents, "children": children}
            related = {name: [other.to_dict() for other in others] for name, others in family.items()}
            _print_json({**node.to_dict(), **{f"{name}_nodes": value for name, value in related.items()}})
            return
        _print_node(node, parents, children)


@dataclass(frozen=True)
class Tree:
    """Show the whole search a node belongs to as a tree; the node itself is marked."""

    run_id: tyro.conf.Positional[str]
    """Run ID or node key, or a unique beginning of one."""
    place: Where = Place()

    def run(self) -> None:
        def ask(store: LineageStore) -> tuple[NodeSummary, list[NodeSummary]]:
            node = find_node(store, self.run_id)
            return node, family(store, node)

        node, nodes = _with_fallback(self.place, ask)
        if self.place.json:
            _print_json([other.to_dict() for other in nodes])
            return
        rows = []
        for indent, other in tree_lines(nodes):
            shown = columns(other)
            mark = "  ◀" if other.key == node.key else ""
            rows.append(
                {**shown, "name": indent + other.name, "came by": _relations(other), "date": shown["date"] + mark}
            )
        _print_table(rows)
        _print_legend(nodes)


@dataclass(frozen=True)
class Sync:
    """Deliver every local node that MLflow does not have yet, or not wholly."""

    place: Where = Place()

    def run(self) -> None:
        delivered = []
        for directory, run_id in self.place.open().sync():
            delivered.append({"directory": str(directory), "run_id": run_id})
            if not self.place.json:
                print(f"{directory.name} → run {run_id}")
        if self.place.json:
            _print_json(delivered)
        elif not delivered:
            print("everything was delivered already")


def _with_fallback(place: Place, ask: Callable[[LineageStore], Any]) -> Any:
    """Return the answer, from the local nodes alone (and saying so) when the tracking store is away."""
    try:
        return ask(place.open())
    except ConnectionError as error:
        print(f"warning: {error}; showing local nodes alone", file=sys.stderr)
        return ask(open_store(place.runs, offline=True))


def _relations(node: NodeSummary) -> str:
    return ", ".join(dict.fromkeys(parent.relation for parent in node.parents)) or "–"


def _print_json(data: Any) -> None:
    json.dump(data, sys.stdout, indent=1, ensure_ascii=False)
    print()


def _print_table(rows: Sequence[dict[str, str]]) -> None:
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    numbers = {"level", "density", "test error"}
    for row in ({name: name for name in widths}, *rows):
        cells = [
            text.rjust(widths[name]) if name in numbers else text.ljust(widths[name]) for name, text in row.items()
        ]
        print("  ".join(cells).rstrip())


def _print_legend(nodes: Sequence[NodeSummary]) -> None:
    if any(node.run_id is None for node in nodes):
        print("\n* not in MLflow yet: the key of a local node; `python tools/lineage.py sync` delivers it")
    if any(node.run_id is not None and node.status != "FINISHED" for node in nodes):
        names = ", ".join(short_id(node) for node in nodes if node.run_id and node.status != "FINISHED")
        print(f"\nnot finished: {names}; `python tools/lineage.py sync` completes an interrupted delivery")


def _print_node(node: NodeSummary, parents: Sequence[NodeSummary], children: Sequence[NodeSummary]) -> None:
    known = {other.key: other for other in parents}
    print(f"{node.name}  ({node.kind}, {node.status.lower()})")
    print(f"  run    {node.run_id or 'not in MLflow yet'}\n  key    {node.key}\n  date   {columns(node)['date']}")
    print("came from" if node.parents else "came from nothing")
    for parent in node.parents:
        other = known.get(parent.key)
        name = f"{other.name}  {short_id(other)}" if other else f"{parent.key[:16]}… (missing)"
        print(f"  {parent.relation:17}{name}")
    print("made from it" if children else "nothing was made from it yet")
    for child in children:
        how = ", ".join(parent.relation for parent in child.parents if parent.key == node.key)
        print(f"  {how:17}{child.name}  {short_id(child)}")
    for title, values in (
        ("tags", node.tags),
        ("metrics (last values)", node.metrics),
        ("files (SHA-256)", node.files),
    ):
        print(title)
        width = max((len(name) for name in values), default=0)
        for name, value in sorted(values.items()):
            print(f"  {name:{width}}  {value:.6g}" if isinstance(value, float) else f"  {name:{width}}  {value}")


def main() -> None:
    """Parse the command line and answer; an error is one line and exit code 1."""
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    arguments = tyro.extras.subcommand_cli_from_dict(
        {"list": List, "show": Show, "tree": Tree, "sync": Sync}, description=__doc__.splitlines()[0]
    )
    try:
        arguments.run()
    except (ValueError, LookupError, OSError) as error:
        print(f"error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
