"""Commands that show the lineage as HTML or in the MLflow UI."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import tyro

from harness.cli.lineage.printing import print_json
from harness.cli.lineage.store_options import StoreOptions, Where
from harness.common.escape import for_terminal, redact
from harness.common.files import write_atomically
from harness.common.optional import require
from harness.lineage.browse.find import find_node, lineage_of, newest
from harness.lineage.browse.query import Query
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.page.page import is_page, page, ui_root
from harness.lineage.store import DEFAULT_EXPERIMENT, LineageStore
from harness.lineage.tracking.ui import open_runs

_log = logging.getLogger(__name__)
_SECONDS_TO_START = 120  # a start takes about 11 s on an idle machine


@dataclass(frozen=True)
class Page:
    """Write the lineage as one HTML file: a graph with filters, a table, and links to MLflow.

    It shows the searches of the given runs and of all their ancestors, or an experiment. By default it shows all runs.
    The file needs no network, so it can be opened anywhere.
    """

    run_ids: tyro.conf.Positional[tuple[str, ...]] = ()
    """Run IDs, keys, or unique prefixes of either. `list` shows them."""
    experiment: str | None = None
    """Name of an MLflow experiment."""
    out: Path = Path("lineage.html")
    """HTML file. An older page is replaced."""
    ui: str | None = None
    """Address of the MLflow UI for the links. Default: the tracking server, or http://127.0.0.1:5000."""
    place: Where = StoreOptions()

    def run(self) -> None:
        if self.run_ids and self.experiment is not None:
            raise ValueError("give run IDs or --experiment, not both")
        if self.out.exists() and not is_page(self.out):
            raise FileExistsError(f"{self.out} exists and is not a page of this command: choose another --out")
        if not self.out.parent.is_dir():
            raise FileNotFoundError(f"cannot create {self.out}: {self.out.parent} is not a directory")
        title, nodes = self.place.ask(self._nodes)
        html, problem = page(title, nodes, ui_root(self.ui or self.place.open().tracking_uri))
        write_atomically(self.out, html.encode(), durable=False)
        if problem:
            _log.warning(f"{problem}; the page has only the table")
        if self.place.json:
            print_json("page", [], written=str(self.out), num_nodes=len(nodes), problem=problem)
        else:
            print(f"{len(nodes)} runs written to {self.out}: open it in a browser")

    def _nodes(self, store: LineageStore) -> tuple[str, list[RunSummary]]:
        if self.run_ids:
            asked = [find_node(store, text) for text in self.run_ids]
            return ", ".join(node.name for node in asked), list(lineage_of(store, asked, up=True).nodes.values())
        nodes = newest(store, limit=None, query=Query(experiment=self.experiment))
        return self.experiment or "lineage", nodes


@dataclass(frozen=True)
class Ui:
    """Start the MLflow UI, and print a link to the runs as a tree with the main columns.

    The link shows an experiment, or the search of one run. If MLFLOW_TRACKING_URI names a server, only its link is
    printed. The columns are saved as a view, in a tag of the experiment.
    """

    run_id: tyro.conf.Positional[str | None] = None
    """Run ID, key, or a unique prefix of either. Only its search is shown."""
    experiment: str = DEFAULT_EXPERIMENT
    """Name of an MLflow experiment."""
    port: int = 5000
    """Port of the UI. It accepts connections from this machine only."""
    link: bool = False
    """Print the link and start no UI."""
    place: Where = StoreOptions()

    def run(self) -> None:
        require("mlflow", "the MLflow UI")
        store = self.place.open(self.experiment)
        if not store.server.readable():
            raise LookupError(f"there is no MLflow store at {store.server.address or 'any URI'}: launch a recipe first")
        root = ui_root(store.tracking_uri if store.server.is_remote else f"http://127.0.0.1:{self.port}")
        node = find_node(store, self.run_id) if self.run_id is not None else None
        view = open_runs(store, self.experiment, node)
        if self.place.json:
            print_json("ui", [], link=root + view.address, shows=view.what)
        elif self.link or store.server.is_remote:
            print(f"{for_terminal(view.what)}:\n  {root}{view.address}")
        else:
            self._serve(store, f"{for_terminal(view.what)}:\n  {root}{view.address}")

    def _serve(self, store: LineageStore, message: str) -> None:
        """Run the UI until interrupted; print `message` when it answers."""
        # Phase: command
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                raise ValueError(f"port {self.port} is in use: give another --port, or --link if the UI already runs")
        command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", str(store.tracking_uri)]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        # Disable MLflow's background job queues: they would start seven more processes, and no feature here uses them.
        environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}

        # Phase: run; SIGTERM raises KeyboardInterrupt like Ctrl-C, so that the UI is stopped in both cases
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with tempfile.TemporaryFile("w+") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            try:
                self._wait_until_it_answers(process, log)
                print(f"{message}\n(Ctrl-C stops the UI)", flush=True)
                process.wait()
            except KeyboardInterrupt:
                pass
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                process.wait()

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes], log: IO[str]) -> None:
        """Wait until the UI answers its health check.

        Raise OSError with the last line of its log if it ends or times out.
        """
        until = time.monotonic() + _SECONDS_TO_START
        while process.poll() is None and time.monotonic() < until:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2).close()
                return
            time.sleep(0.2)
        log.seek(0)
        last = (log.read().strip().splitlines() or ["it printed no message"])[-1]
        raise OSError(f"the MLflow UI did not start: {redact(last):.300}")
