"""Write one run to a directory that others can load, verify and import: a bundle with the network at its top."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.lineage.browse.find import Named, find_node
from harness.lineage.bundle import MODEL, BundledRun, new_directory, write_manifest, write_runs
from harness.lineage.mlmodel import MLMODEL, has_mlmodel, mlmodel
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.nodes.local_files import CONFIG, DETERMINANTS, file_names, json_bytes
from harness.lineage.nodes.record import LineageRecord
from harness.lineage.sharing.card import model_card
from harness.lineage.sharing.description import SharedRun, check_shareable, parse_determinants
from harness.lineage.sharing.licences import UNKNOWN
from harness.lineage.store import LineageStore


@dataclass(frozen=True)
class Exported:
    """An exported directory and its files, {relative name: bytes}."""

    directory: Path
    shared: SharedRun
    items: tuple[BundledRun, ...]
    files: dict[str, int]

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(self.files.values())


def export_run(
    store: LineageStore,
    node: Named,
    out: Path,
    *,
    licence: str = UNKNOWN,
    repo: str = "",
    checkpoints: bool = False,
) -> Exported:
    """Write a level or final training with its lineage to a new directory, atomically.

    The directory has `model.safetensors`, `config.json`, `signed_mask.safetensors`, a model card and `MLmodel`. It is
    also a bundle of the run and all its ancestors, so `import_bundle` takes it.

    Args:
        store: The store of the run.
        node: The run.
        out: The new directory.
        licence: An identifier of the Hugging Face Hub, such as "apache-2.0", or any name.
        repo: USER/NAME on the Hub, for the commands of the model card. "": none.
        checkpoints: Include the checkpoints and θ_init of all ancestors.

    Raises:
        FileExistsError: `out` exists.
        LookupError: There is no such run, or an ancestor is missing.
        ValueError: The run has no network, or a file was altered.

    Example:
        >>> exported = export_run(lineage.open_store(), run_id, Path("ticket"), licence="apache-2.0")
        >>> harness.load_signed_mask(exported.directory).density
        0.64
    """
    # Phase: write the lineage, and the network and signed mask at the top.
    summary = find_node(store, node)
    record = check_shareable(store.record_of(summary))
    with new_directory(out) as temporary:
        items = write_runs(store, [summary], temporary, checkpoints=checkpoints, at_top=summary.key)
        shared = shared_run(store, summary, record)

        # Phase: write the description for people, for MLflow and for other programs.
        (temporary / CONFIG).write_bytes(json_bytes(shared.config()))
        if has_mlmodel(record.kind, record.files):
            (temporary / MLMODEL).write_bytes(mlmodel(record, shared.determinants))
        write_manifest(temporary, items, [record.key], model_card(shared, items, licence, repo))
    return Exported(out, shared, tuple(items), sizes(out))


def shared_run(store: LineageStore, node: RunSummary, record: LineageRecord) -> SharedRun:
    """Return the description of a run that is about to be shared."""
    determinants = {}
    if DETERMINANTS in record.files:
        with store.open_file_of(node, DETERMINANTS) as path:
            determinants = parse_determinants(path.read_bytes())
    return SharedRun(record, determinants, node.all_run_ids)


def sizes(directory: Path) -> dict[str, int]:
    """Return {relative name: bytes} of all files of a directory, the network first, then by name."""
    names = sorted(file_names(directory), key=lambda name: (name != MODEL, "/" in name, name))
    return {name: (directory / name).stat().st_size for name in names}
