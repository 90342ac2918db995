"""Bring the local directory and the MLflow run of a node together by key, and check the bytes of both."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.common.digest import sha256_file
from harness.lineage.browse.find import family, find_node
from harness.lineage.nodes.absent_files import AbsentFile, read_absent_files
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.nodes.local_files import RECORD, LocalNodes, read_record, read_sums
from harness.lineage.nodes.record import KINDS, SIGNED_MASK, LineageRecord, Parent
from harness.lineage.proof.findings import Finding, Findings
from harness.lineage.store import LineageStore
from harness.lineage.tracking.delivery import all_tags, run_metrics, run_tags
from harness.lineage.tracking.description import LAYERS
from harness.lineage.tracking.server import KEY_TAG


@dataclass
class NodeCopies:
    """One node: its local directory and record, its MLflow run, or both."""

    key: str
    """Of a local node whose record cannot be read: the digits its directory is named by."""
    directory: Path | None = None
    record: LineageRecord | None = None
    run: RunSummary | None = None

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


def all_nodes(store: LineageStore, findings: Findings) -> dict[str, NodeCopies]:
    """Return every node by key, local or in MLflow."""
    return _together(store, _local_directories(store.local), store.summaries(), findings)


def nodes_of(store: LineageStore, text: str, findings: Findings) -> dict[str, NodeCopies]:
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
    found: dict[str, NodeCopies] = {}
    while wanted:
        new = _together(store, _directories_of(store.local, wanted), _runs_of(store, wanted), findings)
        found |= new
        wanted = {parent.key for node in new.values() for parent in node.parents} - found.keys()
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


def _runs_of(store: LineageStore, keys: Iterable[str]) -> list[RunSummary]:
    """Return the runs of these keys, one request each: MLflow's filters have no OR, and no IN for tags."""
    return [run for key in sorted(keys) for run in store.summaries(f"tags.`{KEY_TAG}` = '{key}'")]


def _together(
    store: LineageStore, directories: Iterable[Path], runs: Iterable[RunSummary], findings: Findings
) -> dict[str, NodeCopies]:
    nodes: dict[str, NodeCopies] = {}
    by_digits: dict[str, list[RunSummary]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: (run.status != "FINISHED", run.started_ms)):
        by_digits[run.key[:16]].append(run)
        if run.key not in nodes:  # a finished one before an unfinished
            nodes[run.key] = NodeCopies(run.key, run=run)
    for directory in directories:
        digits = directory.name.rpartition("-")[2]
        try:
            record = read_record(directory)
        except ValueError as error:
            known = by_digits.get(digits)
            node = nodes[known[0].key] if known else nodes.setdefault(digits, NodeCopies(digits))
            findings.add(NodeCopies(node.key, directory, run=node.run), [Finding("record", False, str(error))])
            if not known:
                node.directory = directory
            continue
        node = nodes.setdefault(record.key, NodeCopies(record.key))
        node.directory, node.record = directory, record
        named = directory.name == f"{record.kind}-{record.key[:16]}"
        findings.add(node, [Finding("record", named, f"{directory} holds the record of {record.key[:16]}…")])
    return nodes


def check_local(node: NodeCopies, findings: Findings) -> set[str]:
    """Recompute the digest of every local file; return the names of those that are whole."""
    assert node.directory is not None and node.record is not None
    try:
        deleted = read_absent_files(node.directory)
    except ValueError as error:
        findings.add(node, [Finding("files", False, str(error))])
        deleted = {}
    whole = set()
    for name, digest in node.record.files.items():
        path = node.directory / name
        if not path.is_file() and name in deleted:
            _note_deleted(node, name, digest, deleted[name], findings)
            continue
        got = sha256_file(path) if path.is_file() else "missing"
        findings.num_bytes += path.stat().st_size if path.is_file() else 0
        what = f"{path} was altered: its SHA-256 is {got}, recorded was {digest}"
        if findings.add(node, [Finding("files", got == digest, what if path.is_file() else f"{path} is missing")]):
            whole.add(name)
    return whole


def _note_deleted(node: NodeCopies, name: str, digest: str, absent: AbsentFile, findings: Findings) -> None:
    what = f"{name} is marked as deleted, but the mark is of another file ({absent.sha256[:16]}…)"
    if findings.add(node, [Finding("files", absent.sha256 == digest, what)]):
        findings.note(node, f"{name} was {absent}; what follows from it cannot be proved here")


def check_tags(node: NodeCopies, record: LineageRecord, findings: Findings) -> None:
    """Compare a finished run's tags and metrics in MLflow with the record."""
    assert node.run is not None
    findings.add(node, _tag_findings(node.run, record, node.directory))


def check_artifacts(store: LineageStore, node: NodeCopies, record: LineageRecord, findings: Findings) -> None:
    """Recompute the digest of every file that MLflow has of a finished run."""
    assert node.run is not None and node.run.run_id is not None
    absent = [name for name in node.run.absent if name in record.files]
    digests = {name: digest for name, digest in record.files.items() if name not in absent}
    if absent:
        findings.note(node, f"{', '.join(absent)} was left out of the run in MLflow on purpose")
    if node.directory is not None:
        digests[RECORD] = read_sums(node.directory)[RECORD]
    for name, digest, num_bytes in store.stored_digests(node.run.run_id, list(digests)):
        findings.num_bytes += num_bytes
        what = f"{name} in MLflow is {'missing' if digest is None else f'altered: its SHA-256 is {digest}'}"
        findings.add(node, [Finding("artifacts", digest == digests[name], f"{what}, recorded was {digests[name]}")])
    if record.kind == "level" and SIGNED_MASK in digests:
        copy = store.copy_digest(node.run.run_id, SIGNED_MASK)
        if copy is not None:  # earlier versions made no copy
            what = f"the copy of {SIGNED_MASK} beside {LAYERS} in MLflow is altered: its SHA-256 is {copy}"
            findings.add(node, [Finding("artifacts", copy == digests[SIGNED_MASK], what)])


def _tag_findings(run: RunSummary, record: LineageRecord, directory: Path | None) -> Iterator[Finding]:
    told = {"kind": run.kind, "parents": run.parents, "the run it is nested under": run.nest_key}
    wanted = {"kind": record.kind, "parents": record.parents, "the run it is nested under": record.nest_key}
    for name, value in wanted.items():
        yield Finding("tags", told[name] == value, f"{name}: MLflow has {told[name]!r:.200}, the record {value!r:.200}")
    # Earlier versions sent more tags and metrics than this one requires. Present ones must match, too.
    required = run_tags(record)
    for name, value in all_tags(record).items():
        got = run.tags.get(name)
        if got is None and name not in required:
            continue
        yield Finding("tags", got == value, f"tag {name} is {got!r:.120} in MLflow, {value!r:.120} in the record")
    digests = record.files | ({RECORD: read_sums(directory)[RECORD]} if directory is not None else {})
    for name, digest in digests.items():
        yield Finding("tags", run.files.get(name) == digest, f"the digest of {name} is {run.files.get(name)} in MLflow")
    sent = {metric.name for metric in run_metrics(record)}
    for name, measured in record.last_metrics().items():
        logged = run.metrics.get(name)
        if logged is None and name not in sent:
            continue
        same = logged == measured or str(logged) == str(measured)  # NaN is not equal to itself
        yield Finding("tags", same, f"metric {name} is {logged} in MLflow, {measured} in the record")
