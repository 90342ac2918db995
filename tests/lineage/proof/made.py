"""Make a synthetic search with planted faults, and summarise the findings."""

from __future__ import annotations

from pathlib import Path

from harness.config import ModelConfig
from harness.data import open_data
from harness.lineage.nodes.local_files import LocalNodes
from harness.lineage.proof import Findings, verify
from harness.lineage.proof.networks import Architecture
from harness.lineage.store import open_store
from tests.made_search import Change, MadeSearch, small_config

ARCHITECTURE = Architecture.built("resnet8", num_classes=10, channels=1, image_size=8, width=2)
FINALS = ("signed_mask", "retrain", "mask")
FOREIGN = "f" * 64


def content_digest(data: Path) -> str:
    return open_data("digits", data, "memory").content_digest


def make(
    runs: Path,
    data: Path,
    changes: dict[str, Change] | None = None,
    finals: tuple[str, ...] = FINALS,
    architecture: Architecture = ARCHITECTURE,
    model: ModelConfig = ModelConfig("resnet8", width=2),  # noqa: B008 (frozen)
    **settings: object,
) -> MadeSearch:
    """Make a search with final trainings and planted faults.

    Args:
        runs: Directory of the local runs.
        data: Directory of the prepared data.
        changes: Fault to plant in each run, by the run's short name.
        finals: Kinds of the final trainings.
        architecture: Network; any other than `ARCHITECTURE` gets level 0 only.
        model: The same network in the search's settings.
        settings: Further fields of `SearchConfig`.
    """
    # level 0 is enough for other networks, which are tested for their θ_init only
    num_levels = 2 if architecture is ARCHITECTURE else 0
    config = small_config(data, num_levels, model=model, warmup_epochs=2, **settings)
    return MadeSearch(LocalNodes(runs), config, architecture, content_digest(data), changes).make(finals)


def local(runs: Path) -> Findings:
    return verify(open_store(runs, offline=True))


def found(findings: Findings) -> set[tuple[str, str]]:
    """Return each problem's check and the first word of its run's name."""
    return {(problem.check, problem.name.split()[0]) for problem in findings.problems}
