"""Compare two trained networks under the three BatchNorm conventions.

A test calls this module for one process, and launches it as a script on several processes.
"""

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
    """Return settings whose networks are well trained.

    Then few test images lie on the border between two classes, and errors hardly depend on the world size.

    Args:
        data: Directory of the prepared digits.
        runs: Directory for the runs.
    """
    return SearchConfig(
        data=DataConfig("digits", directory=data, loader="memory"),
        model=ModelConfig("resnet8", width=8),
        optim=OptimConfig(),
        method="lrr",
        final=Schedule(10, "step"),
        warmup_epochs=4,
        level_epochs=1,
        num_levels=0,
        global_batch_size=66,  # divisible by two and three processes
        runs=runs,
    )


def opened(world: World, data: Path, runs: Path, **changes: Any) -> Experiment:
    """Return the experiment of a launch without MLflow. `changes` replace settings of `config`."""
    return Experiment(world, open_store(runs, offline=True), replace(config(data, runs), **changes))


def asked(experiment: Experiment, level: str, first: str, second: str) -> Iterator[Comparison | None]:
    """Run all comparisons of one launch.

    Two trainings are compared under each convention, and a level with its two kinds of copies.

    Args:
        experiment: The launch.
        level: Key of the level.
        first: Key of a training.
        second: Key of another training from the same start.

    Yields:
        Five comparisons. On ranks other than 0 each is None.
    """
    load = experiment.archive.load
    for convention in CONVENTIONS:
        # seven batches give two ranks unequal shares; ema and none take no number
        number = {"bn_images": 400} if convention == "cumulative" else {}
        chosen = ComparisonConfig(bn_convention=convention, **number)
        yield compare(experiment, load(first), load(second), "stability", chosen)
    one_batch = ComparisonConfig(num_alphas=3, bn_images=64)
    yield compare_initial_norm(experiment, load(level), one_batch)
    yield compare_signed_init(experiment, load(level), 2, one_batch)


class FailsTheSecondTime:
    """Test images that raise an error at the second pass."""

    def __init__(self, batches: Any) -> None:
        self.batches, self.passes = batches, 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        if self.passes > 1:
            raise OSError("the disk is gone")
        yield from self.batches


def fail_and_stop(experiment: Experiment, first: str, second: str) -> Iterator[str]:
    """Inject two faults on the last rank during a comparison.

    First its second pass over the test images fails. Then only this rank gets a stop signal.

    Yields:
        A line for each fault that states how this rank ended.
    """
    world, own = experiment.world, experiment.test_feed
    pair = experiment.archive.load(first), experiment.archive.load(second)
    last = world.rank == world.size - 1
    comparison.HELD_PIXELS = 0  # keep no images in memory, so that each α reads them again
    for fault in ("fails", "stops"):
        experiment.test_feed = FailsTheSecondTime(own) if fault == "fails" and last else own  # type: ignore[assignment]
        world.stop._signal = signal.SIGTERM if fault == "stops" and last else None
        try:
            compare(experiment, *pair, "stability", ComparisonConfig(num_alphas=4, bn_images=64))
            yield f"{world.rank} {fault}: ended well"
        except (OSError, RuntimeError) as error:
            yield f"{world.rank} {fault}: {type(error).__name__}: {error}"


def main() -> None:
    """Run the comparisons and both faults in one launch.

    Each rank prints one JSON line with its curves, and one line per fault.
    """
    data, runs, *keys, precision = sys.argv[1:]
    world = World(precision)
    experiment = opened(world, Path(data), Path(runs), precision=precision)
    curves = [None if one is None else one.curve.to_dict() for one in asked(experiment, *keys)]
    lines = [json.dumps(curves), *fail_and_stop(experiment, *keys[1:])]
    os.write(1, "".join(f"{line}\n" for line in lines).encode())  # one write, since the ranks share the stream
    world.close()


if __name__ == "__main__":
    main()
