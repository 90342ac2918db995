"""Open an experiment whose searches take a second, and inspect its runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from harness import load_network, load_signed_mask
from harness.checkpoint import Checkpoint
from harness.cli.resolve import resolve_initialisation
from harness.config import DataConfig, ModelConfig, OptimConfig, Schedule, SearchConfig
from harness.data.prepare import prepare
from harness.distributed import world as world_module
from harness.distributed.world import World
from harness.experiment.experiment import Experiment, Initialisation
from harness.lineage.proof import Findings, verify
from harness.lineage.store import open_store
from harness.runs.run import FinishedRun

STEPS = 5
"""Optimizer steps per epoch."""


def open_experiment(where: Path) -> Iterator[Experiment]:
    """Open an experiment on the digits without MLflow.

    The network is a narrow ResNet-8. An epoch has five steps, and a search has two prunings.

    Args:
        where: Directory for data and runs.
    """
    prepare("digits", where / "data")
    config = SearchConfig(
        data=DataConfig("digits", directory=where / "data", loader="memory"),
        model=ModelConfig("resnet8", width=2),
        optim=OptimConfig(),
        final=Schedule(2, "step"),
        warmup_epochs=1,
        level_epochs=1,
        num_levels=2,
        global_batch_size=256,
        runs=where / "runs",
    )
    # Accelerate's state is global, and other tests reset it. Without Accelerate the results have the same bits.
    with patch.object(world_module, "_has_accelerate", lambda: False):
        world = World("no")
    yield Experiment(world, open_store(config.runs, offline=True), config)
    world.close()


def resolved(experiment: Experiment, text: str) -> Initialisation:
    """Resolve the text of `--initialisation`: a scheme, a run or a file."""
    return resolve_initialisation(experiment.world, experiment.store, text)


def proved(experiment: Experiment, node: FinishedRun) -> Findings:
    """Verify the search that a level belongs to, with all its descendants."""
    assert node.record is not None and node.record.nested_under is not None
    return verify(open_store(experiment.config.runs, offline=True), node.record.nested_under)


def is_loaded(experiment: Experiment, node: FinishedRun) -> bool:
    """Return whether `load_network` and `load_signed_mask` give the network and mask of a run, bit by bit."""
    runs = experiment.config.runs
    model, signed_mask = load_network(node, local_dir=runs), load_signed_mask(node, local_dir=runs)
    held = Checkpoint.of(model, level=0, epochs=0, level_digest="")
    return held.digest == node.checkpoint.digest and signed_mask == node.signed_mask


def tag(node: FinishedRun, name: str) -> str:
    """Return a tag of a run's record."""
    assert node.record is not None
    return node.record.tags[name]
