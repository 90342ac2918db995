"""Check that the prepared data files are those that the runs used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.common.digest import sha256_file, sha256_json
from harness.common.logging import progress as show_progress
from harness.data.manifest import SPLITS, Manifest
from harness.lineage.nodes.record import LineageRecord
from harness.lineage.proof.findings import Finding, Findings


@dataclass(frozen=True)
class _DataSet:
    """One prepared data set: its name, recorded digest and parent directory."""

    name: str
    digest: str
    directory: Path

    @property
    def key(self) -> str:
        return ""

    run_id = None


def check_data(
    records: Iterable[LineageRecord], directory: Path | None, findings: Findings, *, progress: bool = False
) -> None:
    """Hash the files of every data set that the records name.

    Args:
        records: Records of the verified runs.
        directory: Directory of the prepared data; by default the one that each run recorded.
        findings: Receives the results, and a note for each data set that is not found.
        progress: Show a progress bar.
    """
    # Phase: the data sets of the records, each once.
    found: dict[_DataSet, None] = {}
    for record in records:
        name, digest = record.tags.get("data"), record.tags.get("data_digest")
        if name and digest and "search" in record.config:
            try:
                recorded = Path(record.config["search"]["data"]["directory"])
            except (KeyError, TypeError):
                findings.note(_DataSet(name, digest, Path()), f"{record.name} does not say where its files were")
                continue
            found[_DataSet(name, digest, directory or recorded)] = None
    # Phase: hash their files.
    for data in found:
        home = data.directory / data.name
        if home.is_dir():
            findings.add(data, _findings(data, home, findings, progress=progress))
        else:
            findings.note(data, f"its files were not checked: {home} does not exist; give --data-directory")


def _findings(data: _DataSet, home: Path, findings: Findings, *, progress: bool) -> Iterator[Finding]:
    """Check the manifests of a data set and the files in them."""
    manifests = []
    for split in SPLITS:
        try:
            manifests.append(Manifest.load(home / f"{split}.json"))
        except (FileNotFoundError, ValueError) as error:
            yield Finding("data", False, str(error))
    if len(manifests) < len(SPLITS):
        return
    content = sha256_json([manifest.content_digest for manifest in manifests])
    what = f"the content digest of {home} is {content[:16]}…, but the runs used data with {data.digest[:16]}…"
    yield Finding("data", content == data.digest, what)
    files = {name: record for manifest in manifests for name, record in manifest.files.items()}
    with show_progress(f"hashing {home}", len(files), "files", shown=progress) as bar:
        for name, record in files.items():
            bar.update()
            path = home / name
            if not path.is_file():
                continue  # files of one loader suffice; opening the data reports files that another loader lacks
            findings.num_bytes += path.stat().st_size
            same = sha256_file(path) == record.sha256
            yield Finding("data", same, f"{path} was altered: its SHA-256 differs from the one in its manifest")
