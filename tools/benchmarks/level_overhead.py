"""What a level costs beside its work: logging, hashing, committing, delivery to MLflow, over its wall time.

A real search with levels of one epoch. The work is training, evaluating and estimating BatchNorm statistics; everything
else that a level does counts as overhead, what is logged between epochs included. One epoch is the worst case: the
recipes train five and more. The first call to MLflow, which makes its database, comes before the first level. Delivery
goes on in a thread of its own beside the next level; here it is waited for, and counts in full.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import harness.experiment.experiment
import harness.experiment.search
from harness.config import DataConfig, ModelConfig, OptimConfig, Schedule, SearchConfig
from harness.data.prepare import prepare
from harness.distributed.world import World
from harness.experiment.experiment import Experiment
from harness.lineage.nodes.local_files import LocalNodes
from harness.lineage.store import LineageStore, open_store
from harness.runs.delivery_thread import DeliveryThread
from tools.benchmarks.row import Row

GOAL = 0.02


@dataclass
class Clock:
    """Seconds by part; a part within another is taken from the outer one."""

    seconds: dict[str, float] = field(default_factory=dict)
    _open: list[float] = field(default_factory=list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time spent inside as `name`."""
        started = time.perf_counter()
        self._open.append(0.0)
        try:
            yield
        finally:
            spent, inner = time.perf_counter() - started, self._open.pop()
            self.seconds[name] = self.seconds.get(name, 0.0) + spent - inner
            if self._open:
                self._open[-1] += spent

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`, its calls counted as `name`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if "on_epoch" in kwargs:
                kwargs["on_epoch"] = self.timed("logging", kwargs["on_epoch"])
            with self.part(name):
                return function(*args, **kwargs)

        return call


WORK = "work"
_PARTS: tuple[tuple[object, str, str], ...] = (
    (harness.experiment.experiment, "train", WORK),
    (harness.experiment.experiment, "evaluate", WORK),
    (harness.experiment.experiment, "reestimate_batchnorm", WORK),
    (harness.experiment.experiment, "sha256_tensors", "hashing"),
    (LocalNodes, "commit", "committing"),
    (LineageStore, "find", "MLflow"),
    (DeliveryThread, "send", "MLflow"),
    (DeliveryThread, "settle", "MLflow"),
)


def rows(quick: bool) -> list[Row]:
    """Measure a dense warm-up level and a pruning level; `quick` takes digits, whose levels last a second."""
    data = "digits" if quick else "fashion_mnist"
    with tempfile.TemporaryDirectory() as directory:
        prepare(data, Path(directory), None)
        levels = _timed_levels(data, Path(directory))
    shares = [_overhead(level) / _wall(level) for level in levels]
    wall = sum(map(_wall, levels))
    overhead = sum(map(_overhead, levels))
    share = overhead / wall
    return [
        Row(
            name=f"overhead / wall time of a level, {data}, ResNet-20, 1 epoch [s]",
            ours=overhead / len(levels),
            reference=wall / len(levels),
            ratio=share,
            goal=f"≤ {GOAL:g}",
            reached=share <= GOAL,
            low=min(shares),
            high=max(shares),
            note=_note(levels) + (" (the goal is for fashion_mnist)" if quick else ""),
        )
    ]


def _timed_levels(data: str, directory: Path) -> list[dict[str, float]]:
    """Run a search of two levels and return the seconds of each level by part."""
    config = SearchConfig(
        data=DataConfig(name=data, directory=directory),
        model=ModelConfig(name="resnet20"),
        optim=OptimConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4),
        warmup_epochs=1,
        level_epochs=1,
        num_levels=1,
        final=Schedule(epochs=1, lr_schedule="step"),
        global_batch_size=128,
        runs=directory / "runs",
    )
    store = open_store(config.runs, f"sqlite:///{directory / 'mlflow.db'}", "benchmark")
    experiment = Experiment(World(), store, config)
    # compiles FFCV's kernels: that is start-up, once per machine
    for _ in experiment.bn_batches(0, 2 * config.global_batch_size):
        pass
    levels: list[dict[str, float]] = []
    run_level = harness.experiment.search._level

    def level(*args: Any) -> Any:
        clock = Clock()
        with ExitStack() as stack:
            for owner, name, part in _PARTS:
                stack.enter_context(patch.object(owner, name, clock.timed(part, getattr(owner, name))))
            with clock.part("rest"):
                node = run_level(*args)
                experiment.archive.delivery.settle()
        levels.append(clock.seconds)
        return node

    with patch.object(harness.experiment.search, "_level", level):
        harness.experiment.search.search(experiment)
    return levels


def _wall(level: dict[str, float]) -> float:
    return sum(level.values())


def _overhead(level: dict[str, float]) -> float:
    return _wall(level) - level[WORK]


def _note(levels: list[dict[str, float]]) -> str:
    parts = sorted({part for level in levels for part in level} - {WORK})
    means = (f"{part} {sum(level.get(part, 0.0) for level in levels) / len(levels):.3f}" for part in parts)
    return f"{len(levels)} levels, seconds each: {', '.join(means)}"
