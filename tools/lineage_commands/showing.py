"""Commands that show the lineage to a person: as a page, in the MLflow UI."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from harness.escape import for_terminal
from harness.lineage.browse import find_node, lineage_of, newest
from harness.lineage.graph import NodeSummary
from harness.lineage.page import is_page, page, ui_root
from harness.lineage.query import Query
from harness.lineage.store import LineageStore
from tools.lineage_commands.place import Place, Where
from tools.lineage_commands.printing import print_json


@dataclass(frozen=True)
class Page:
    """Write what came from what as one HTML file: the graph to point at and filter, a table, links to MLflow.

    Of the searches that some runs belong to and all they came from; of a whole experiment; else of everything there is.
    The file loads nothing, so it can be opened anywhere and given away.
    """

    run_ids: tyro.conf.Positional[tuple[str, ...]] = ()
    """Run IDs or node keys, or unique beginnings."""
    experiment: str | None = None
    """Name of an MLflow experiment."""
    out: Path = Path("lineage.html")
    """File to write to; an older page there is replaced."""
    ui: str | None = None
    """Address of the MLflow UI for the links; default the tracking server, or http://127.0.0.1:5000."""
    place: Where = Place()

    def run(self) -> None:
        if self.run_ids and self.experiment is not None:
            raise ValueError("give run IDs or --experiment, not both")
        if self.out.exists() and not is_page(self.out):
            raise FileExistsError(f"{self.out} is there and no page of this command: choose another --out")
        title, nodes = self.place.ask(self._nodes)
        html, problem = page(title, nodes, ui_root(self.ui or self.place.open().tracking_uri))
        temporary = self.out.with_name(f".{self.out.name}.{os.getpid()}")
        temporary.write_text(html, encoding="utf-8")
        os.replace(temporary, self.out)
        if problem:
            print(f"warning: {for_terminal(problem)}; the page has the table alone", file=sys.stderr)
        if self.place.json:
            print_json("page", [], written=str(self.out), num_nodes=len(nodes), problem=problem)
        else:
            print(f"{len(nodes)} runs written to {self.out}: open it in a browser")

    def _nodes(self, store: LineageStore) -> tuple[str, list[NodeSummary]]:
        if self.run_ids:
            asked = [find_node(store, text) for text in self.run_ids]
            return ", ".join(node.name for node in asked), list(lineage_of(store, asked, up=True).nodes.values())
        nodes = newest(store, limit=None, query=Query(experiment=self.experiment))
        return self.experiment or "lineage", nodes
