"""Whether the prepared data files are still those that the runs were made from."""

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
    """One prepared data set, as some runs name it."""

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
    """Hash the files of every data set that the records name; say so when a data set is not here."""
    found: dict[_DataSet, None] = {}
    for record in records:
        name, digest = record.tags.get("data"), record.tags.get("data_digest")
        if name and digest and "search" in record.config:
            recorded = Path(record.config["search"]["data"]["directory"])
            found[_DataSet(name, digest, directory or recorded)] = None
    for data in found:
        home = data.directory / data.name
        if home.is_dir():
            findings.add(data, _findings(data, home, findings, progress=progress))
        else:
            findings.note(data, f"the data are not in {home}, so their digest was not checked (--data-directory)")


def _findings(data: _DataSet, home: Path, findings: Findings, *, progress: bool) -> Iterator[Finding]:
    manifests = []
    for split in SPLITS:
        try:
            manifests.append(Manifest.load(home / f"{split}.json"))
        except (FileNotFoundError, ValueError) as error:
            yield Finding("data", False, str(error))
    if len(manifests) < len(SPLITS):
        return
    content = sha256_json([manifest.content_digest for manifest in manifests])
    what = f"{home} holds content {content[:16]}…, the runs were made from {data.digest[:16]}…"
    yield Finding("data", content == data.digest, what)
    files = {name: record for manifest in manifests for name, record in manifest.files.items()}
    with show_progress(f"hashing {home}", len(files), "files", shown=progress) as bar:
        for name, record in files.items():
            bar.update()
            path = home / name
            if not path.is_file():
                continue  # one loader's form alone is enough; opening the data says if it is the other that is wanted
            findings.num_bytes += path.stat().st_size
            same = sha256_file(path) == record.sha256
            yield Finding("data", same, f"{path} is not the file that its manifest describes")
