"""Match local runs with MLflow runs and check their files."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from harness.common.digest import sha256_file
from harness.lineage.browse.find import family, find_node
from harness.lineage.mlmodel import MLMODEL, fault, has_mlmodel
from harness.lineage.nodes.absent_files import AbsentFile, read_absent_files
from harness.lineage.nodes.contents import differing, suspects
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.nodes.local_files import RECORD, LocalNodes, check_file, parse_record, read_record, read_sums
from harness.lineage.nodes.record import KINDS, SIGNED_MASK, LineageRecord, Parent
from harness.lineage.proof.findings import Finding, Findings
from harness.lineage.store import LineageStore
from harness.lineage.tracking.addresses import Addresses
from harness.lineage.tracking.delivery import all_tags, run_metrics, run_tags
from harness.lineage.tracking.description import LAYERS
from harness.lineage.tracking.server import KEY_TAG


@dataclass
class NodeCopies:
    """Copies of one run: local directory, MLflow run, or both."""

    key: str
    """The key. If the local record is unreadable, only the 16 digits in the directory name."""
    directory: Path | None = None
    record: LineageRecord | None = None
    run: RunSummary | None = None
    repeats: list[RunSummary] = field(default_factory=list)
    """Further MLflow runs with this key."""

    @property
    def name(self) -> str:
        """Name in the record, else of the MLflow run or directory."""
        found = self.record or self.run
        return found.name if found else self.directory.name if self.directory else self.key[:16]

    @property
    def run_id(self) -> str | None:
        """MLflow run ID, or None if the run is only local."""
        return self.run.run_id if self.run else None

    @property
    def kind(self) -> str:
        """Search, level, training, …; "" if neither record nor MLflow run is readable."""
        found = self.record or self.run
        return found.kind if found else ""

    @property
    def parents(self) -> tuple[Parent, ...]:
        """Parents from the record, else from the MLflow run."""
        found = self.record or self.run
        return found.parents if found else ()

    @property
    def finished(self) -> bool:
        """Whether one copy is complete.

        A local copy is complete if its record is readable, and an MLflow run if its status is FINISHED.
        """
        return self.record is not None or (self.run is not None and self.run.status == "FINISHED")


def all_nodes(store: LineageStore, findings: Findings) -> dict[str, NodeCopies]:
    """Return all local runs and MLflow runs by key.

    Unreadable local records are added to `findings` as problems.
    """
    return _together(store, _local_directories(store.local), store.summaries(), findings)


def nodes_of(store: LineageStore, text: str, findings: Findings) -> dict[str, NodeCopies]:
    """Return one run with all its ancestors, by key.

    For a search, also return all runs below it.

    Args:
        store: Local runs and their MLflow copies.
        text: A run ID, key or unique prefix, as for `find_node`.
        findings: Receives a problem for each unreadable local record.

    Raises:
        LookupError: No run matches `text`.
    """
    try:
        node = find_node(store, text)
        wanted = {other.key for other in family(store, node)} if node.kind == "search" else {node.key}
    except LookupError:
        broken = [path for path in _local_directories(store.local) if path.name.rpartition("-")[2] == text[:16]]
        if not broken:
            raise
        return _together(store, broken, [], findings)

    # Load one generation of parents after another.
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
    """Return all directories named like a committed run, even damaged ones."""
    if not local.directory.is_dir():
        return []
    named = re.compile(rf"({'|'.join(KINDS)})-[0-9a-f]{{16}}")
    return sorted(path for path in local.directory.iterdir() if named.fullmatch(path.name))


def _directories_of(local: LocalNodes, keys: Iterable[str]) -> list[Path]:
    """Return the existing directories named after these keys, including damaged ones."""
    paths = (local.directory / f"{kind}-{key[:16]}" for key in keys for kind in KINDS)
    return [path for path in paths if path.is_dir()]


def _runs_of(store: LineageStore, keys: Iterable[str]) -> list[RunSummary]:
    """Return the MLflow runs with these keys.

    Each key takes one request, because MLflow filters have no OR and no IN for tags.
    """
    return [run for key in sorted(keys) for run in store.summaries(f"tags.`{KEY_TAG}` = '{key}'")]


def _together(
    store: LineageStore, directories: Iterable[Path], runs: Iterable[RunSummary], findings: Findings
) -> dict[str, NodeCopies]:
    """Merge directories and MLflow runs by key; report unreadable and misplaced records."""
    # Phase: MLflow runs; for equal keys a finished run goes before unfinished ones
    nodes: dict[str, NodeCopies] = {}
    by_digits: dict[str, list[RunSummary]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: (run.status != "FINISHED", run.started_ms)):
        by_digits[run.key[:16]].append(run)
        if run.key not in nodes:
            nodes[run.key] = NodeCopies(run.key, run=run)
        else:
            nodes[run.key].repeats.append(run)

    # Phase: local directories, matched by the digits in their name if the record is unreadable
    for directory in directories:
        digits = directory.name.rpartition("-")[2]
        try:
            record = read_record(directory)
        except (ValueError, OSError) as error:
            known = by_digits.get(digits)
            node = nodes[known[0].key] if known else nodes.setdefault(digits, NodeCopies(digits))
            findings.add(NodeCopies(node.key, directory, run=node.run), [Finding("record", False, str(error))])
            if not known:
                node.directory = directory
            continue
        node = nodes.setdefault(record.key, NodeCopies(record.key))
        node.directory, node.record = directory, record
        named = directory.name == f"{record.kind}-{record.key[:16]}"
        what = f"{directory} holds the record of another run, {record.kind} {record.key[:16]}…"
        findings.add(node, [Finding("record", named, what)])
    return nodes


def check_local(node: NodeCopies, findings: Findings) -> set[str]:
    """Check the digest of every local file; return the intact names.

    Files that are absent on purpose get a note.
    """
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
        what = f"{path} was altered: its SHA-256 is {got}, but {digest} was recorded"
        if findings.add(node, [Finding("files", got == digest, what if path.is_file() else f"{path} is missing")]):
            whole.add(name)
    return whole


def _note_deleted(node: NodeCopies, name: str, digest: str, absent: AbsentFile, findings: Findings) -> None:
    """Note a file that is absent on purpose.

    Its entry in the list must have the recorded digest.
    """
    what = f"{name} is missing; deleted.json lists it, but with another digest ({absent.sha256[:16]}…)"
    if findings.add(node, [Finding("files", absent.sha256 == digest, what)]):
        findings.note(node, f"{name} was {absent}; the checks that need it are skipped")


def check_tags(node: NodeCopies, record: LineageRecord, findings: Findings) -> None:
    """Compare tags and metrics of a finished MLflow run with the record."""
    assert node.run is not None
    findings.add(node, _tag_findings(node.run, record, node.directory if record is node.record else None))


def other_making(store: LineageStore, node: NodeCopies) -> LineageRecord | None:
    """Return the record of an MLflow run that another launch made under the key of a local run; None if it is a copy.

    Two launches on two machines, or before and after a loss of `runs/`, can make one run twice.
    """
    assert node.run is not None and node.run.run_id is not None
    theirs = node.run.files.get(RECORD)
    if node.directory is None or theirs in (None, read_sums(node.directory)[RECORD]):
        return None
    try:
        with store.open_file(node.run.run_id, RECORD) as path:
            record = parse_record(path)
    except (ValueError, LookupError):  # altered; the other checks report it
        return None
    return record if (record.key, record.kind) == (node.key, node.kind) else None


def check_contents(store: LineageStore, node: NodeCopies, other: LineageRecord | None, findings: Findings) -> None:
    """Compare the tensors of a local run and of the MLflow run with its key.

    Args:
        store: Local runs and their MLflow copies.
        node: The run.
        other: The record of the MLflow run if another launch made it. A copy of the local run needs no comparison.
        findings: Receives the result.
    """
    assert node.directory is not None and node.record is not None and node.run is not None
    directory, record, run_id = node.directory, node.record, str(node.run.run_id)
    files = differing(
        suspects(record.files, other.files) if other is not None else [],
        lambda name: nullcontext(check_file(directory, record, name)),
        lambda name: store.open_file(run_id, name),
    )
    what = f"MLflow run {run_id} has the same key, but other tensors in {' and '.join(files)}"
    if findings.add(node, [Finding("contents", not files, what)]) and other is not None:
        findings.note(node, f"made twice with the same bits: the local run, and by another launch MLflow run {run_id}")


def check_addresses(addresses: Addresses, node: NodeCopies, findings: Findings) -> None:
    """Check the addresses of a run in MLflow."""
    wrong = list(addresses.wrong(node.key, node.directory if node.record is not None else None, missing=False))
    if node.run is not None or wrong:
        findings.add(node, [Finding("addresses", False, one.what) for one in wrong] or [Finding("addresses", True, "")])


def check_artifacts(store: LineageStore, node: NodeCopies, record: LineageRecord, findings: Findings) -> None:
    """Add a finding for each recorded file: MLflow's copy has the recorded SHA-256."""
    assert node.run is not None and node.run.run_id is not None
    absent = [name for name in node.run.absent if name in record.files]
    digests = {name: digest for name, digest in record.files.items() if name not in absent}
    if absent:
        findings.note(node, f"the MLflow run lacks {', '.join(absent)} on purpose; only other copies can be checked")
    if node.directory is not None:
        own = record is node.record
        digests[RECORD] = read_sums(node.directory)[RECORD] if own else node.run.files[RECORD]
    for name, digest, num_bytes in store.stored_digests(node.run.run_id, list(digests)):
        findings.num_bytes += num_bytes
        what = f"{name} in MLflow is {'missing' if digest is None else f'altered: its SHA-256 is {digest}'}"
        findings.add(node, [Finding("artifacts", digest == digests[name], f"{what}, but {digests[name]} was recorded")])
    if has_mlmodel(record.kind, record.files):
        content = store.model_file(node.run.run_id, MLMODEL)
        wrong = None if content is None else fault(content, record.key)  # earlier versions delivered none
        what = f"{MLMODEL} in MLflow {wrong}: do not load it with mlflow.pyfunc; delete it, and `sync` writes it again"
        findings.add(node, [Finding("artifacts", wrong is None, what)])
    if record.kind == "level" and SIGNED_MASK in digests:
        copy = store.copy_digest(node.run.run_id, SIGNED_MASK)
        if copy is not None:  # earlier versions made no copy
            what = f"the copy of {SIGNED_MASK} beside {LAYERS} in MLflow is altered: its SHA-256 is {copy}"
            findings.add(node, [Finding("artifacts", copy == digests[SIGNED_MASK], what)])


def _tag_findings(run: RunSummary, record: LineageRecord, directory: Path | None) -> Iterator[Finding]:
    """Compare each field, tag, digest and metric in MLflow with the record."""
    told = {"kind": run.kind, "parents": run.parents, "the run it is nested under": run.nest_key}
    wanted = {"kind": record.kind, "parents": record.parents, "the run it is nested under": record.nest_key}
    for name, value in wanted.items():
        what = f"{name}: MLflow has {told[name]!r:.200}, but the record has {value!r:.200}"
        yield Finding("tags", told[name] == value, what)
    # Earlier versions sent more tags and metrics than this one requires. Present ones must match too.
    required = run_tags(record)
    for name, value in all_tags(record).items():
        got = run.tags.get(name)
        if got is None and name not in required:
            continue
        yield Finding("tags", got == value, f"tag {name} is {got!r:.120} in MLflow, but {value!r:.120} in the record")
    digests = record.files | ({RECORD: read_sums(directory)[RECORD]} if directory is not None else {})
    for name, digest in digests.items():
        what = f"the digest of {name} is {run.files.get(name)} in MLflow, but {digest} in the record"
        yield Finding("tags", run.files.get(name) == digest, what)
    sent = {metric.name for metric in run_metrics(record)}
    for name, measured in record.last_metrics().items():
        logged = run.metrics.get(name)
        if logged is None and name not in sent:
            continue
        same = logged == measured or str(logged) == str(measured)  # the strings also match for NaN
        yield Finding("tags", same, f"metric {name} is {logged} in MLflow, but {measured} in the record")
