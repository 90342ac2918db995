"""Verify runs: read the files of each run once, parents first."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.common.logging import progress as show_progress
from harness.common.tensors import load_correct
from harness.config.own_loop import OWN_LOOP
from harness.lineage.nodes.local_files import CONFIG, DETERMINANTS, LocalNodes, read_record
from harness.lineage.nodes.record import CORRECT, LineageRecord
from harness.lineage.proof import records
from harness.lineage.proof.copies import (
    NodeCopies,
    all_nodes,
    check_addresses,
    check_artifacts,
    check_contents,
    check_local,
    check_tags,
    nodes_of,
    other_making,
)
from harness.lineage.proof.data_files import check_data
from harness.lineage.proof.findings import Finding, Findings, contradiction
from harness.lineage.proof.origins import check_origins, in_order
from harness.lineage.proof.tensors import Tensors
from harness.lineage.store import LineageStore

BARRIER = "barrier.json"


def verify(
    store: LineageStore,
    run_id: str | None = None,
    *,
    data_directory: Path | None = None,
    trust_code: bool = False,
    progress: bool = False,
) -> Findings:
    """Verify a run and all its ancestors.

    This recomputes every digest and checks every claim in the records. It writes nothing. A Python file that defines a
    network is executed only if the user has named it in a command before, or with `trust_code`.

    Args:
        store: Local runs and their MLflow copies.
        run_id: A run ID, key or unique prefix. A search is verified with all runs below it. None verifies all runs.
        data_directory: Directory of the prepared data, by default the one that each run recorded.
        trust_code: Execute Python files that define networks in any case.
        progress: Show progress bars.

    Returns:
        Problems, notes, and the number of times that each check was made.

    Raises:
        LookupError: No run matches `run_id`.
        ConnectionError: The tracking server is unreachable.
    """
    findings = Findings()
    nodes = all_nodes(store, findings) if run_id is None else nodes_of(store, run_id, findings)
    check_origins(nodes, findings)

    # Phase: each run
    examiner = _Examiner(store, nodes, findings, trust_code=trust_code)
    ordered = in_order(nodes)
    with show_progress("verifying", len(ordered), "runs", shown=progress) as bar:
        for node in ordered:
            bar.update()
            bar.postfix = node.name[:40]
            try:
                examiner.examine(node)
            except ConnectionError:  # an answer would be incomplete
                raise
            except Exception as error:
                # Report contradictory values, and go on with the other runs.
                findings.add(node, [contradiction(error)])

    # Phase: prepared data
    findings.num_nodes = len(nodes)
    check_data((node.record for node in ordered if node.record), data_directory, findings, progress=progress)
    return findings


class _Examiner:
    """Run all checks on one run at a time."""

    def __init__(
        self, store: LineageStore, nodes: dict[str, NodeCopies], findings: Findings, *, trust_code: bool
    ) -> None:
        self.store, self.nodes, self.findings = store, nodes, findings
        self.tensors = Tensors(store, nodes, findings, trust_code=trust_code)
        runs = [run for node in nodes.values() if node.run is not None for run in (node.run, *node.repeats)]
        self.addresses = store.addresses(runs) if store.server.readable() else None

    def examine(self, node: NodeCopies) -> None:
        """Check the files, the record and the tensors of one run."""
        if node.run is not None:
            status = node.run.status
            what = f"the status of its MLflow run is {status}, not FINISHED"
            self.findings.add(node, [Finding("finished", status == "FINISHED", what)])
        if self.addresses is not None:
            with self.store.server.talking("check the addresses of the runs"):
                check_addresses(self.addresses, node, self.findings)
        with self._at_hand(node) as directory:
            if directory is None:
                return
            assert node.record is not None
            local = node if node.directory is not None else NodeCopies(node.key, directory, node.record, node.run)
            whole = check_local(local, self.findings)
            self.tensors.altered |= {(node.key, name) for name in node.record.files if name not in whole}
            if node.run is not None and node.run.status == "FINISHED":
                # MLflow's copy is compared with its own record if another launch made it.
                other = other_making(self.store, node)
                check_tags(node, other or node.record, self.findings)
                if node.directory is not None:
                    check_artifacts(self.store, node, other or node.record, self.findings)
                    check_contents(self.store, node, other, self.findings)
            determinants = self._record(node, directory, whole)
            self.tensors.examine(node, directory, whole, determinants)

    @contextmanager
    def _at_hand(self, node: NodeCopies) -> Iterator[Path | None]:
        """Yield the directory of a run, or None if it is unreadable.

        A run that is only in MLflow is downloaded temporarily.
        """
        if node.directory is not None or node.run is None or node.run.status != "FINISHED":
            yield node.directory if node.record is not None else None
            return
        with tempfile.TemporaryDirectory(prefix="verify-") as scratch:
            directory = None
            try:
                directory = LineageStore(self.store.tracking_uri, LocalNodes(scratch)).find(node.key)
            except ValueError as error:  # an altered or missing file
                self.findings.add(node, [Finding("artifacts", False, str(error))])
            if directory is not None:
                node.record = read_record(directory)
                self.findings.add(node, [Finding("artifacts", True, "")] * len(node.record.files))
            yield directory

    # ------------------------------------------------------------------ records

    def _record(self, node: NodeCopies, directory: Path, whole: set[str]) -> dict[str, Any] | None:
        """Check the record and return the content of determinants.json.

        Return None if that file is missing or altered.
        """
        # Phase: key, settings and seeds
        record = node.record
        assert record is not None
        determinants = json.loads((directory / DETERMINANTS).read_bytes()) if DETERMINANTS in whole else None
        if DETERMINANTS not in record.files:
            self.findings.note(node, f"its key was not checked: an older version made it, without {DETERMINANTS}")
        self.findings.add(node, records.key(record))
        if CONFIG in whole and "search" in record.config:
            config = json.loads((directory / CONFIG).read_bytes())
            self.findings.add(node, records.settings(record, config, determinants))
        if CONFIG in whole and OWN_LOOP in record.config:
            self.findings.add(node, records.own_loop(record, determinants))
        for way in records.older_ways(record):
            self.findings.note(node, way)
        search = self.nodes.get(record.nested_under or "")
        self.findings.add(node, records.seeds(record, determinants, search.record if search else None))
        parent = self.nodes.get(record.parents[0].key) if record.parents else None
        self.findings.add(node, records.processes(record, parent.record if parent else None))

        # Phase: test errors and comparisons
        if CORRECT in whole:
            try:
                self.findings.add(node, records.correct(record, load_correct(directory / CORRECT)))
            except ValueError as error:
                self.findings.add(node, [Finding("correct", False, str(error))])
        if record.kind == "analysis":
            if BARRIER in whole:
                self.findings.add(node, records.curve(record, json.loads((directory / BARRIER).read_bytes())))
            self._comparison(node, record, determinants)
        return determinants

    def _comparison(self, node: NodeCopies, record: LineageRecord, determinants: dict[str, Any] | None) -> None:
        """Check that the networks of a comparison answer its question."""
        pair = [self.nodes[parent.key] for parent in record.parents if parent.key in self.nodes]
        if record.tags.get("question") == "signed_init":
            for ticket in pair:
                if ticket.record is not None:
                    self.findings.add(node, records.signed_init(record, ticket.record))
                    self.tensors.signed_init(node, record, determinants, ticket.key)
            return
        if len(pair) != 2 or pair[0].record is None or pair[1].record is None:
            return
        if record.tags.get("question") == "norm_init":
            self.findings.add(node, records.initial_norm(pair[0].record, pair[1].record))
            return
        self.findings.add(node, records.comparable(record, pair[0].record, pair[1].record))
        masks = [self.tensors.network(other.key).signed_mask for other in pair]
        if masks[0] is not None and masks[1] is not None:
            same = masks[0].mask.equal(masks[1].mask)
            self.findings.add(node, [Finding("compared", same, "the two runs have different masks")])
