"""Comparisons of two trained networks under three conventions: called by a test, and launched on several processes."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.config import ComparisonConfig, DataConfig, ModelConfig, OptimConfig, Schedule, SearchConfig
from harness.distributed.world import World
from harness.experiment import comparison
from harness.experiment.comparison import Comparison, compare, compare_initial_norm, compare_signed_init
from harness.experiment.experiment import Experiment
from harness.lineage.store import open_store

CONVENTIONS = ("cumulative", "ema", "none")


def config(data: Path, runs: Path) -> SearchConfig:
    """A warm-up and final trainings after which few test images are wrong, and few on a border between classes."""
    return SearchConfig(
        data=DataConfig("digits", directory=data, loader="memory"),
        model=ModelConfig("resnet8", width=8),
        optim=OptimConfig(),
        method="lrr",
        final=Schedule(10, "step"),
        warmup_epochs=4,
        level_epochs=1,
        num_levels=0,
        global_batch_size=66,  # two processes can share it, and three
        runs=runs,
    )


def opened(world: World, data: Path, runs: Path, **changes: Any) -> Experiment:
    """The experiment in one launch, without MLflow."""
    return Experiment(world, open_store(runs, offline=True), replace(config(data, runs), **changes))


def asked(experiment: Experiment, level: str, first: str, second: str) -> Iterator[Comparison | None]:
    """Compare two trainings under each convention, and a level with its two kinds of copies."""
    load = experiment.archive.load
    for convention in CONVENTIONS:
        chosen = ComparisonConfig(bn_convention=convention, bn_images=400)  # seven batches: two ranks share unequally
        yield compare(experiment, load(first), load(second), "stability", chosen)
    one_batch = ComparisonConfig(num_alphas=3, bn_images=64)
    yield compare_initial_norm(experiment, load(level), one_batch)
    yield compare_signed_init(experiment, load(level), 2, one_batch)


class FailsTheSecondTime:
    """Test images that can be gone through once."""

    def __init__(self, batches: Any) -> None:
        self.batches, self.passes = batches, 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        if self.passes > 1:
            raise OSError("the disk is gone")
        yield from self.batches


def fail_and_stop(experiment: Experiment, first: str, second: str) -> Iterator[str]:
    """Say how each rank ends when the last one fails in the second α, and when it alone is asked to stop."""
    world, own = experiment.world, experiment.test_feed
    pair = experiment.archive.load(first), experiment.archive.load(second)
    last = world.rank == world.size - 1
    comparison.HELD_PIXELS = 0  # images are read anew for each α
    for fault in ("fails", "stops"):
        experiment.test_feed = FailsTheSecondTime(own) if fault == "fails" and last else own  # type: ignore[assignment]
        world.stop._signal = signal.SIGTERM if fault == "stops" and last else None
        try:
            compare(experiment, *pair, "stability", ComparisonConfig(num_alphas=4, bn_images=64))
            yield f"{world.rank} {fault}: ended well"
        except (OSError, RuntimeError) as error:
            yield f"{world.rank} {fault}: {type(error).__name__}: {error}"


def main() -> None:
    """Compare, fail and stop in one launch; each rank prints whole lines."""
    data, runs, *keys, precision = sys.argv[1:]
    world = World(precision)
    experiment = opened(world, Path(data), Path(runs), precision=precision)
    curves = [None if one is None else one.curve.to_dict() for one in asked(experiment, *keys)]
    lines = [json.dumps(curves), *fail_and_stop(experiment, *keys[1:])]
    os.write(1, "".join(f"{line}\n" for line in lines).encode())  # in one write: the ranks share the stream
    world.close()


if __name__ == "__main__":
    main()
