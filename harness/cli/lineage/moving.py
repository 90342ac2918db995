"""Commands that copy runs: deliver to MLflow, export, bundle and import."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from harness.cli.lineage.printing import print_json
from harness.cli.lineage.store_options import StoreOptions, Where
from harness.common.escape import for_terminal
from harness.common.program import command
from harness.lineage.browse.export import edges, write_export
from harness.lineage.browse.find import find_node, lineage_of, newest
from harness.lineage.bundle import Imported, import_bundle, write_bundle
from harness.lineage.nodes.contents import OtherContentsError
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.store import DEFAULT_EXPERIMENT, LineageStore, SyncError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sync:
    """Deliver all local runs that are missing or incomplete in MLflow."""

    experiment: str = DEFAULT_EXPERIMENT
    """MLflow experiment that receives the runs."""
    place: Where = StoreOptions()

    def run(self) -> None:
        # Phase: deliver all runs that can be delivered
        delivered: list[dict[str, str]] = []
        problems: list[str] = []
        try:
            for directory, run_id in self.place.open(self.experiment).sync():
                delivered.append({"directory": str(directory), "run_id": run_id})
                if not self.place.json:
                    print(f"{directory.name} → run {run_id}")
        except SyncError as error:
            problems = error.problems

        # Phase: report; problems give exit code 1
        if self.place.json:
            print_json("sync", [], delivered=delivered, problems=problems)
        else:
            for problem in problems:
                print(f"error: {for_terminal(problem)}", file=sys.stderr)
            if not delivered and not problems:
                print("all runs were delivered already")
        if problems:
            sys.exit(1)


@dataclass(frozen=True)
class Relocate:
    """Correct the file paths in an MLflow SQLite database that was moved or copied.

    Only the MLflow UI needs this. The harness finds the files of a moved store by itself.
    """

    place: Where = StoreOptions()

    def run(self) -> None:
        from harness.lineage.tracking.moved import relocate
        from harness.lineage.tracking.server import sqlite_path

        uri = self.place.open().tracking_uri
        done = relocate(uri, sqlite_path(uri))
        if self.place.json:
            print_json("relocate", [], files=str(done.files), changed=done.changed, missing=list(done.lost))
        else:
            what = f"{done.changed} paths changed to {done.files}" if done.changed else "all paths are right already"
            print(f"{done.database}: {what}")
        if done.lost:
            more = f" and {len(done.lost) - 3} more" if len(done.lost) > 3 else ""
            raise LookupError(
                f"the files of {len(done.lost)} runs are missing: {', '.join(done.lost[:3])}{more}; move them "
                f"to {done.files}, or `{command('lineage sync')}` sends them again from the local runs"
            )


@dataclass(frozen=True)
class Export:
    """Write the graph of runs for another program: JSON, or GraphML for Gephi, yEd and networkx.

    The graph has the searches of the given runs and of all their ancestors. Without a RUN, it has all runs.
    """

    run_ids: tyro.conf.Positional[tuple[str, ...]] = ()
    """Run IDs, keys, or unique prefixes of either. `list` shows them."""
    format: Literal["json", "graphml"] = "json"
    """File format."""
    out: Path = Path("lineage.json")
    """New file."""
    place: Where = StoreOptions()

    def run(self) -> None:
        def ask(store: LineageStore) -> list[RunSummary]:
            if not self.run_ids:
                return newest(store, limit=None)
            asked = [find_node(store, text) for text in self.run_ids]
            return list(lineage_of(store, asked, up=True).nodes.values())

        nodes = self.place.ask(ask)
        write_export(nodes, self.out, self.format)
        if self.place.json:
            print_json("export", [], written=str(self.out), num_nodes=len(nodes))
        else:
            print(f"{len(nodes)} runs and {len(edges(nodes))} edges written to {self.out}")


@dataclass(frozen=True)
class Bundle:
    """Write runs and all their ancestors to a directory that others can import and verify.

    It has masks, settings and records. Checkpoints are a hundred times as large, so they need --checkpoints.
    """

    run_ids: tyro.conf.Positional[tuple[str, ...]]
    """Run IDs, keys, or unique prefixes of either. `list` shows them."""
    out: Path
    """New directory."""
    checkpoints: bool = False
    """Include checkpoints and initial parameters (θ_init). Without them, `verify` cannot compare signs with
    parameters."""
    place: Where = StoreOptions()

    def run(self) -> None:
        if not self.run_ids:
            raise ValueError(f"give at least one RUN: `{self.place.open().list_command}` shows the runs")

        def ask(store: LineageStore) -> tuple[list[RunSummary], int]:
            nodes = [find_node(store, text) for text in self.run_ids]
            return nodes, len(write_bundle(store, nodes, self.out, checkpoints=self.checkpoints))

        nodes, count = self.place.ask(ask)
        num_bytes = sum(path.stat().st_size for path in self.out.rglob("*") if path.is_file())
        if self.place.json:
            print_json("bundle", nodes, written=str(self.out), num_nodes=count, num_bytes=num_bytes)
        else:
            print(f"{count} runs, {num_bytes / 1e6:.1f} MB written to {self.out}; its README.md explains how to use it")


@dataclass(frozen=True)
class Import:
    """Import a bundle. All digests are checked. No file is executed or overwritten.

    All commands then accept the imported runs, also by their original run IDs.
    """

    directory: tyro.conf.Positional[Path]
    """Directory of the bundle."""
    experiment: str = DEFAULT_EXPERIMENT
    """MLflow experiment that receives the runs."""
    place: Where = StoreOptions()

    def run(self) -> None:
        store = self.place.open(self.experiment)
        imported = deliver_imported(store, import_bundle(store, self.directory), self.place)
        if self.place.json:
            print_json("import", [], imported=imported)


def deliver_imported(
    store: LineageStore, imported: Iterable[Imported], place: StoreOptions
) -> list[dict[str, str | None]]:
    """Deliver imported runs unless offline, print each outcome, and return the outcomes as JSON fields."""
    outcomes = []
    for one in imported:
        run_id = None if place.offline else _deliver(store, one.directory)
        outcomes.append({"key": one.item.key, "name": one.item.name, "outcome": one.outcome, "run_id": run_id})
        if not place.json:
            print(for_terminal(f"{one.item.name}: {one.outcome}") + (f" → run {run_id}" if run_id else ""))
    if not place.offline:
        store.show()
    return outcomes


def _deliver(store: LineageStore, directory: Path) -> str | None:
    """Deliver an imported run and return its run ID.

    If the server is unreachable, or has the run with other contents, warn and return None.
    """
    try:
        return store.deliver(directory)
    except ConnectionError as error:
        _log.warning(f"{error}; `{command('lineage sync')}` delivers it later")
        return None
    except OtherContentsError as error:
        _log.warning(f"{error}; the imported run stays local")
        return None
