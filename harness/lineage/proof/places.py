"""Where nodes lie: local directories and MLflow runs brought together by key, and what the bytes there are."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.common.digest import sha256_file
from harness.lineage.browse.find import family, find_node
from harness.lineage.nodes.absent_files import Tombstone, read_tombstones
from harness.lineage.nodes.graph import NodeSummary
from harness.lineage.nodes.local_files import RECORD, LocalNodes, read_record, read_sums
from harness.lineage.nodes.record import KINDS, LineageRecord, Parent
from harness.lineage.proof.findings import Claim, Findings
from harness.lineage.store import LineageStore
from harness.lineage.tracking.delivery import run_tags

_KEYS_PER_REQUEST = 50


@dataclass
class Place:
    """One node: its local directory and record, its MLflow run, or both."""

    key: str
    """Of a local node whose record cannot be read: the digits its directory is named by."""
    directory: Path | None = None
    record: LineageRecord | None = None
    run: NodeSummary | None = None

    @property
    def name(self) -> str:
        """As the record has it, else the run, else the directory."""
        found = self.record or self.run
        return found.name if found else self.directory.name if self.directory else self.key[:16]

    @property
    def run_id(self) -> str | None:
        """MLflow's name for it."""
        return self.run.run_id if self.run else None

    @property
    def kind(self) -> str:
        """Search, level, training, …; '' if nothing can be read."""
        found = self.record or self.run
        return found.kind if found else ""

    @property
    def parents(self) -> tuple[Parent, ...]:
        """What it says it came from."""
        found = self.record or self.run
        return found.parents if found else ()

    @property
    def finished(self) -> bool:
        """Whether it is whole somewhere: local nodes are, runs when they are marked so."""
        return self.record is not None or (self.run is not None and self.run.status == "FINISHED")


def all_places(store: LineageStore, findings: Findings) -> dict[str, Place]:
    """Return every node by key, local or in MLflow."""
    return _together(store, _local_directories(store.local), store.summaries(), findings)


def places_of(store: LineageStore, text: str, findings: Findings) -> dict[str, Place]:
    """Return the node that `text` names with all it came from, and of a search all that is below it too.

    LookupError when there is no such node.
    """
    try:
        node = find_node(store, text)
        wanted = {other.key for other in family(store, node)} if node.kind == "search" else {node.key}
    except LookupError:
        broken = [path for path in _local_directories(store.local) if path.name.rpartition("-")[2] == text[:16]]
        if not broken:
            raise
        return _together(store, broken, [], findings)
    found: dict[str, Place] = {}
    while wanted:
        new = _together(store, _directories_of(store.local, wanted), _runs_of(store, wanted), findings)
        found |= new
        wanted = {parent.key for place in new.values() for parent in place.parents} - found.keys()
        wanted &= {key for key in wanted if _known(store, key)}
    return found


def _known(store: LineageStore, key: str) -> bool:
    return bool(_directories_of(store.local, {key}) or _runs_of(store, {key}))


def _local_directories(local: LocalNodes) -> list[Path]:
    """Return everything that is named like a node, whole or not."""
    if not local.directory.is_dir():
        return []
    named = re.compile(rf"({'|'.join(KINDS)})-[0-9a-f]{{16}}")
    return sorted(path for path in local.directory.iterdir() if named.fullmatch(path.name))


def _directories_of(local: LocalNodes, keys: Iterable[str]) -> list[Path]:
    paths = (local.directory / f"{kind}-{key[:16]}" for key in keys for kind in KINDS)
    return [path for path in paths if path.is_dir()]


def _runs_of(store: LineageStore, keys: Iterable[str]) -> list[NodeSummary]:
    """Return the runs of these keys, a few requests for all."""
    listed, runs = sorted(keys), []
    for start in range(0, len(listed), _KEYS_PER_REQUEST):
        # MLflow's filters know no OR; IN works on attributes alone
        for key in listed[start : start + _KEYS_PER_REQUEST]:
            runs += store.summaries(f"tags.`harness.key` = '{key}'")
    return runs


def _together(
    store: LineageStore, directories: Iterable[Path], runs: Iterable[NodeSummary], findings: Findings
) -> dict[str, Place]:
    places: dict[str, Place] = {}
    by_digits: dict[str, list[NodeSummary]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: (run.status != "FINISHED", run.started_ms)):
        by_digits[run.key[:16]].append(run)
        if run.key not in places:  # a finished one before an unfinished
            places[run.key] = Place(run.key, run=run)
    for directory in directories:
        digits = directory.name.rpartition("-")[2]
        try:
            record = read_record(directory)
        except ValueError as error:
            known = by_digits.get(digits)
            place = places[known[0].key] if known else places.setdefault(digits, Place(digits))
            findings.add(Place(place.key, directory, run=place.run), [Claim("record", False, str(error))])
            if not known:
                place.directory = directory
            continue
        place = places.setdefault(record.key, Place(record.key))
        place.directory, place.record = directory, record
        named = directory.name == f"{record.kind}-{record.key[:16]}"
        findings.add(place, [Claim("record", named, f"{directory} holds the record of {record.key[:16]}…")])
    return places


def check_local(place: Place, findings: Findings) -> set[str]:
    """Recompute the digest of every local file; return the names of those that are whole."""
    assert place.directory is not None and place.record is not None
    try:
        deleted = read_tombstones(place.directory)
    except ValueError as error:
        findings.add(place, [Claim("files", False, str(error))])
        deleted = {}
    whole = set()
    for name, digest in place.record.files.items():
        path = place.directory / name
        if not path.is_file() and name in deleted:
            _note_deleted(place, name, digest, deleted[name], findings)
            continue
        got = sha256_file(path) if path.is_file() else "missing"
        findings.num_bytes += path.stat().st_size if path.is_file() else 0
        what = f"{path} was altered: its SHA-256 is {got}, recorded was {digest}"
        if findings.add(place, [Claim("files", got == digest, what if path.is_file() else f"{path} is missing")]):
            whole.add(name)
    return whole


def _note_deleted(place: Place, name: str, digest: str, stone: Tombstone, findings: Findings) -> None:
    what = f"{name} is marked as deleted, but the mark is of another file ({stone.sha256[:16]}…)"
    if findings.add(place, [Claim("files", stone.sha256 == digest, what)]):
        findings.note(place, f"{name} was {stone}; what follows from it cannot be proved here")


def check_tags(place: Place, record: LineageRecord, findings: Findings) -> None:
    """Compare a finished run's tags and metrics in MLflow with the record."""
    assert place.run is not None
    findings.add(place, _tag_claims(place.run, record, place.directory))


def check_artifacts(store: LineageStore, place: Place, record: LineageRecord, findings: Findings) -> None:
    """Recompute the digest of every file that MLflow has of a finished run."""
    assert place.run is not None and place.run.run_id is not None
    absent = [name for name in place.run.absent if name in record.files]
    digests = {name: digest for name, digest in record.files.items() if name not in absent}
    if absent:
        findings.note(place, f"{', '.join(absent)} was left out of the run in MLflow on purpose")
    if place.directory is not None:
        digests[RECORD] = read_sums(place.directory)[RECORD]
    for name, digest, num_bytes in store.stored_digests(place.run.run_id, list(digests)):
        findings.num_bytes += num_bytes
        what = f"{name} in MLflow is {'missing' if digest is None else f'altered: its SHA-256 is {digest}'}"
        findings.add(place, [Claim("artifacts", digest == digests[name], f"{what}, recorded was {digests[name]}")])


def _tag_claims(run: NodeSummary, record: LineageRecord, directory: Path | None) -> Iterator[Claim]:
    told = {"kind": run.kind, "parents": run.parents, "the run it is nested under": run.nest_key}
    wanted = {"kind": record.kind, "parents": record.parents, "the run it is nested under": record.nest_key}
    for name, value in wanted.items():
        yield Claim("tags", told[name] == value, f"{name}: MLflow has {told[name]!r:.200}, the record {value!r:.200}")
    for name, value in run_tags(record).items():
        got = run.tags.get(name)
        yield Claim("tags", got == value, f"tag {name} is {got!r:.120} in MLflow, {value!r:.120} in the record")
    digests = record.files | ({RECORD: read_sums(directory)[RECORD]} if directory is not None else {})
    for name, digest in digests.items():
        yield Claim("tags", run.files.get(name) == digest, f"the digest of {name} is {run.files.get(name)} in MLflow")
    for name, measured in record.last_metrics().items():
        logged = run.metrics.get(name)
        same = logged == measured or str(logged) == str(measured)  # NaN is not equal to itself
        yield Claim("tags", same, f"metric {name} is {logged} in MLflow, {measured} in the record")
