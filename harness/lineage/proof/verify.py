"""Verification from beginning to end: every node's bytes are read once, level by level."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from harness.lineage.nodes.local_files import CONFIG, DETERMINANTS, LocalNodes, read_record
from harness.lineage.nodes.record import LineageRecord
from harness.lineage.proof import records
from harness.lineage.proof.data_files import check_data
from harness.lineage.proof.findings import Claim, Findings
from harness.lineage.proof.origins import check_origins, in_order
from harness.lineage.proof.places import Place, all_places, check_artifacts, check_local, check_tags, places_of
from harness.lineage.proof.tensors import Tensors
from harness.lineage.store import LineageStore

BARRIER = "barrier.json"


def verify(
    store: LineageStore,
    run_id: str | None = None,
    *,
    data_directory: Path | None = None,
    progress: bool = False,
) -> Findings:
    """Recompute every digest and check every claim of a run and all it came from; of everything if `run_id` is None.

    A search is verified with all that is below it. `run_id` is a run ID or key, or a unique beginning of one
    (LookupError if there is none). Data files are looked for in `data_directory`, else where the runs found them.
    ConnectionError when the tracking server is away. Nothing is written, and nothing in the files is executed.
    """
    findings = Findings()
    places = all_places(store, findings) if run_id is None else places_of(store, run_id, findings)
    check_origins(places, findings)
    examiner = _Examiner(store, places, findings)
    ordered = in_order(places)
    with tqdm(ordered, desc="verifying", unit="run", leave=False, disable=None if progress else True) as bar:
        for place in bar:
            bar.set_postfix_str(place.name[:40], refresh=False)
            try:
                examiner.examine(place)
            except (ValueError, LookupError, TypeError) as error:
                # a record of the right form can still say what nobody can follow, and must not hide the others
                what = f"what it says cannot be followed: {type(error).__name__}: {error}"
                findings.add(place, [Claim("settings", False, what)])
    findings.num_nodes = len(places)
    check_data((place.record for place in ordered if place.record), data_directory, findings, progress=progress)
    return findings


class _Examiner:
    """Goes through the nodes in order."""

    def __init__(self, store: LineageStore, places: dict[str, Place], findings: Findings) -> None:
        self.store, self.places, self.findings = store, places, findings
        self.tensors = Tensors(store, places, findings)

    def examine(self, place: Place) -> None:
        """Check one node: its bytes, its record, its tensors."""
        if place.run is not None:
            status = place.run.status
            self.findings.add(place, [Claim("finished", status == "FINISHED", f"its MLflow run is {status}")])
        with self._at_hand(place) as directory:
            if directory is None:
                return
            assert place.record is not None
            local = place if place.directory is not None else Place(place.key, directory, place.record, place.run)
            whole = check_local(local, self.findings)
            self.tensors.altered |= {(place.key, name) for name in place.record.files if name not in whole}
            if place.run is not None and place.run.status == "FINISHED":
                check_tags(place, place.record, self.findings)
                if place.directory is not None:
                    check_artifacts(self.store, place, place.record, self.findings)
            determinants = self._record(place, directory, whole)
            self.tensors.examine(place, directory, whole, determinants)

    @contextmanager
    def _at_hand(self, place: Place) -> Iterator[Path | None]:
        """Give the directory of a node; one that is in MLflow alone is fetched for as long as it is looked at."""
        if place.directory is not None or place.run is None or place.run.status != "FINISHED":
            yield place.directory if place.record is not None else None
            return
        with tempfile.TemporaryDirectory(prefix="verify-") as scratch:
            directory = None
            try:
                directory = LineageStore(self.store.tracking_uri, LocalNodes(scratch)).find(place.key)
            except ValueError as error:  # altered, missing
                self.findings.add(place, [Claim("artifacts", False, str(error))])
            if directory is not None:
                place.record = read_record(directory)
                self.findings.add(place, [Claim("artifacts", True, "")] * len(place.record.files))
            yield directory

    # ------------------------------------------------------------------ records

    def _record(self, place: Place, directory: Path, whole: set[str]) -> dict[str, Any] | None:
        """Check what the record says; return its determinants."""
        record = place.record
        assert record is not None
        determinants = json.loads((directory / DETERMINANTS).read_bytes()) if DETERMINANTS in whole else None
        if DETERMINANTS not in record.files:
            self.findings.note(place, "what its key is the digest of was not recorded by the version that made it")
        self.findings.add(place, records.key(record))
        if CONFIG in whole and "search" in record.config:
            config = json.loads((directory / CONFIG).read_bytes())
            self.findings.add(place, records.settings(record, config, determinants))
        search = self.places.get(record.nested_under or "")
        self.findings.add(place, records.seeds(record, determinants, search.record if search else None))
        if record.kind == "analysis":
            self._comparison(place, record, directory, whole)
        return determinants

    def _comparison(self, place: Place, record: LineageRecord, directory: Path, whole: set[str]) -> None:
        if BARRIER in whole:
            self.findings.add(place, records.curve(record, json.loads((directory / BARRIER).read_bytes())))
        pair = [self.places[parent.key] for parent in record.parents if parent.key in self.places]
        if len(pair) != 2 or pair[0].record is None or pair[1].record is None:
            return
        if record.tags.get("question") == "norm_init":
            self.findings.add(place, records.initial_norm(pair[0].record, pair[1].record))
            return
        self.findings.add(place, records.comparable(record, pair[0].record, pair[1].record))
        masks = [self.tensors.network(other.key).signed_mask for other in pair]
        if masks[0] is not None and masks[1] is not None:
            same = masks[0].mask.equal(masks[1].mask)
            self.findings.add(place, [Claim("compared", same, "the masks of the two differ")])
