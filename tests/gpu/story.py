"""Run end-to-end scenarios on any device: searches, final trainings, an interruption, and comparisons from disk.

The scenarios use the real launch, local store, training states and tools. They need only PyTorch, safetensors, tqdm
and tyro, because the data are random and no plot is drawn. One scenario is a `Chapter`. All together are the story.
"""

from __future__ import annotations

import io
import json
import math
import os
import runpy
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from unittest.mock import patch

import torch
from safetensors.torch import save_file

from harness.cli.launch import launch
from harness.common.digest import sha256_file
from harness.config import DataConfig, GemMinerConfig, Kind, ModelConfig, OptimConfig, Precision, Schedule, SearchConfig
from harness.data.manifest import FileRecord, Manifest
from harness.distributed import world as world_module
from harness.distributed.stop import StoppedError
from harness.experiment.experiment import Experiment
from harness.experiment.final import Trial, final_training
from harness.experiment.search import SearchResult, search
from harness.pruning import METHODS
from harness.runs.run import FinishedRun
from harness.training import loop
from harness.training.feed import TrainFeed
from tests.training.small_training import forget_accelerate

TOOLS = Path(__file__).resolve().parents[2] / "tools"
IMAGES = {"train": 64, "test": 40}
BATCH = 16
STEPS = IMAGES["train"] // BATCH
"""Optimizer steps per epoch."""
Way = Literal["accelerate", "alone"]


@dataclass(frozen=True)
class Chapter:
    """One scenario: the searches, final trainings and comparisons of one launch."""

    precision: Precision
    way: Way
    methods: tuple[str, ...]
    """Methods to search with. The final trainings use the ticket of the first."""
    kinds: tuple[Kind, ...]
    compares: bool = False
    """Whether to compare finished runs from disk: the first two kinds, and the first kind under two noises."""
    changes: dict[str, Any] = field(default_factory=dict, hash=False)
    """Settings of the search that differ from `config`."""

    def __str__(self) -> str:
        return f"{self.precision}-{self.way}-{'-'.join(self.methods)}"


# Together the scenarios cover each precision with and without Accelerate, each method, and each kind of final training.
CHAPTERS = (
    Chapter("no", "accelerate", ("aws", "wr"), ("signed_mask", "retrain"), compares=True),
    Chapter("no", "alone", ("lrr", "gem_miner"), ("mask", "dense"), changes={"optim": OptimConfig("adam", lr=0.01)}),
    Chapter(
        "bf16",
        "accelerate",
        ("random", "imp", "magnitude_increase"),
        ("signed_mask_norm",),
        changes={"accumulation_steps": 2},
    ),
    Chapter(
        "bf16",
        "alone",
        ("lrr_bn_rewind",),
        ("signed_mask_norm_const", "random_signs"),
        compares=True,
        changes={"optim": OptimConfig("adam", lr=0.01, max_grad_norm=0.5), "pruning_scope": "layer"},
    ),
    Chapter(
        "fp16",
        "accelerate",
        ("lrr_full", "aws_full", "snip", "synflow"),
        ("random_mask",),
        changes={"optim": OptimConfig("adam", lr=0.01)},
    ),
    Chapter(
        "fp16",
        "alone",
        ("dense", "aws"),
        ("signed_mask",),
        changes={"optim": OptimConfig("sgd", lr=0.05, max_grad_norm=0.5), "order": "paper"},
    ),
)


def alone(chapter: Chapter) -> Chapter:
    """Return the same scenario without Accelerate."""
    return replace(chapter, way="alone")


def make_up_data(where: Path) -> None:
    """Write a data set of random images with the digits' sizes.

    Images of one class are noise around one random image, so that training can learn the classes.

    Args:
        where: Directory of prepared data to fill.
    """
    generator = torch.Generator().manual_seed(4)
    classes = torch.randint(256, (10, 8, 8, 1), generator=generator)
    (home := where / "digits").mkdir(parents=True)
    for split, number in IMAGES.items():
        labels = torch.arange(number) % 10
        noise = torch.randint(256, (number, 8, 8, 1), generator=generator)
        path = home / f"{split}.safetensors"
        save_file({"images_NHWC": ((classes[labels] + noise) // 2).to(torch.uint8), "labels": labels}, path)
        digest = sha256_file(path)
        files = {path.name: FileRecord(digest, path.stat().st_size)}
        Manifest("digits", split, number, digest, {}, {}, files).save(home / f"{split}.json")


def config(where: Path, precision: Precision = "no", **changes: Any) -> SearchConfig:
    """Return settings of a tiny search: a narrow ResNet-8, epochs of four steps, two prunings.

    Args:
        where: Directory for the data, written if missing, and for the runs.
        precision: Precision of the launch.
        changes: Settings to replace.
    """
    # all scenarios in one directory share the data
    if not (where / "data").exists():
        make_up_data(where / "data")
    usual = SearchConfig(
        data=DataConfig("digits", directory=where / "data", loader="memory"),
        model=ModelConfig("resnet8", width=2),
        optim=OptimConfig(lr=0.05),
        final=Schedule(2, "step"),
        warmup_epochs=1,
        level_epochs=1,
        num_levels=2,
        global_batch_size=BATCH,
        rewind_to=2,
        rewind_unit="steps",
        gem_miner=GemMinerConfig(score_epochs=3, freeze_every_epochs=1, finetune=Schedule(1, "constant")),
        precision=precision,
        runs=where / "runs",
        offline=True,
    )
    return replace(usual, **changes)


@contextmanager
def opened(settings: SearchConfig, way: Way) -> Iterator[Experiment]:
    """Open a launch in this process.

    Args:
        settings: Settings of the launch.
        way: Whether to use Accelerate, or to act as if it were not installed.
    """
    with _process(way), launch(settings) as experiment:
        yield experiment


@contextmanager
def _process(way: Way) -> Iterator[None]:
    forget_accelerate()
    try:
        if way == "accelerate":
            yield
        else:
            with patch.object(world_module, "_has_accelerate", lambda: False):
                yield
    finally:
        forget_accelerate()


def tell(chapter: Chapter, where: Path) -> None:
    """Run one scenario in directory `where`, and check its results."""
    with opened(config(where, chapter.precision, **chapter.changes), chapter.way) as experiment:
        first, *_ = [found(experiment.using(method)) for method in chapter.methods]
        own = experiment.using(chapter.methods[0])
        runs = [used(own, kind, first.ticket) for kind in chapter.kinds]
        if chapter.compares:
            twin = used(own, chapter.kinds[0], first.ticket, sgd_seed=2)
    if chapter.compares:
        compared("stability", where, chapter.way, runs[0], twin)
        compared("lmc", where, chapter.way, *runs[:2])
        compared("norm_barrier", where, chapter.way, first.ticket)
        compared("sign_barrier", where, chapter.way, first.ticket)


def found(experiment: Experiment) -> SearchResult:
    """Search and check every level.

    Masks must be nested and have the right counts. See `check` for each single run.
    """
    result, settings = search(experiment), experiment.config
    method = METHODS[settings.method]
    assert [node.checkpoint.level for node in result.levels] == ([2] if method.searches_one_density else [0, 1, 2])
    for node in result.levels:
        check(node)
    for before, after in zip(result.levels, result.levels[1:], strict=False):
        assert after.mask.issubset(before.mask)
        if settings.pruning_scope == "global" and method.pruning(settings) is not None:
            assert after.mask.num_remaining == int(0.8 * before.mask.num_remaining)
    assert (result.ticket.mask.density < 1) == (settings.method != "dense")
    return result


def used(experiment: Experiment, kind: Kind, ticket: FinishedRun, sgd_seed: int = 1) -> FinishedRun:
    """Run and check a final training of `ticket`.

    Args:
        experiment: The launch.
        kind: Kind of final training.
        ticket: Run with the pruned network.
        sgd_seed: Seed of the noise. `retrain` of a full method requires that of the search, 1.
    """
    trained = final_training(experiment, Trial(kind, init_seed=2, sgd_seed=sgd_seed), ticket)
    check(trained)
    if kind not in ("dense", "random_mask"):
        assert trained.mask.equal(ticket.mask)
    return trained


def check(node: FinishedRun) -> None:
    """Assert that a finished run is valid.

    Its tensors must be on the CPU, its pruned weights zero, and its weights and metrics finite.
    """
    state = node.checkpoint.state_dict | node.mask.tensors | node.signed_mask.signs
    assert all(type(tensor) is torch.Tensor and tensor.device.type == "cpu" for tensor in state.values())
    assert all(bool(tensor.isfinite().all()) for tensor in node.checkpoint.params.values())
    for name, kept in node.mask.tensors.items():
        assert not bool(node.checkpoint.params[name][~kept].any()), name
    assert 0 <= node.metric("test_error_percent") <= 100 and math.isfinite(node.metric("test_loss"))


def compared(question: str, where: Path, way: Way, *nodes: FinishedRun) -> dict[str, Any]:
    """Compare runs in a new launch, by a tool.

    Args:
        question: Name of the tool in tools/, without suffix.
        where: Directory with the runs.
        way: Whether to use Accelerate.
        nodes: The runs to compare.

    Returns:
        The printed curve.
    """
    options = ["--runs", str(where / "runs"), "--offline", "--json", "--num-alphas", "3", "--bn-images", "32"]
    printed = tool(f"{question}.py", way, *(node.key for node in nodes), *options)
    curve = dict(json.loads(printed.splitlines()[-1]))
    assert curve["alphas"] == [0, 0.5, 1]
    assert all(0 <= error <= 100 for error in curve["error_percent"])
    return curve


def tool(name: str, way: Way, *arguments: str) -> str:
    """Run a tool in this process and return its standard output."""
    pictures = SimpleNamespace(plot_barriers=lambda curves, path, ends: None)  # plots need Matplotlib
    with (
        _process(way),
        patch.object(sys, "argv", [str(TOOLS / name), *arguments]),
        patch.dict(os.environ, HARNESS_TRACEBACK="1"),
        patch.dict(sys.modules, {"harness.analysis.plots": pictures}),
        redirect_stdout(io.StringIO()) as printed,
    ):
        runpy.run_path(str(TOOLS / name), run_name="__main__")
    return printed.getvalue()


def interrupted_and_whole(where: Path, way: Way, after_steps: int, **settings: Any) -> tuple[FinishedRun, FinishedRun]:
    """Run one search with an interruption, and one without.

    Args:
        where: Directory for both.
        way: Whether to use Accelerate.
        after_steps: Number of training steps after which the search gets SIGTERM. It then resumes.
        settings: Settings of the search to replace.

    Returns:
        The ticket of the interrupted search, and that of the other.
    """
    saving = {"checkpoint_every": 1, "checkpoint_unit": "steps"} | settings
    stopped = config(where / "stopped", **saving)
    try:
        with opened(stopped, way) as experiment, _signal(after_steps):
            search(experiment)
        raise AssertionError(f"the search ended before step {after_steps}")
    except StoppedError:
        assert list(stopped.runs.glob(".making-level-*/state-*.safetensors")), "the search must stop inside a level"
    with opened(stopped, way) as experiment:
        again = found(experiment).ticket
    with opened(config(where / "whole", **saving), way) as experiment:
        return again, found(experiment).ticket


@contextmanager
def refused_waits() -> Iterator[list[int]]:
    """Make torch raise an error where a training step waits.

    The periodic synchronisation of the ranks, `_Meeting.hold`, may wait.

    Yields:
        A list with one entry per training step taken so far.
    """
    # Phase: refuse waits during a step, and allow them between steps and in `hold`
    epoch, hold, steps = TrainFeed.epoch, loop._Meeting.hold, []
    refuse = torch.cuda.set_sync_debug_mode

    def refusing(self: TrainFeed, *args: Any, **options: Any) -> Iterator[Any]:
        for batch in epoch(self, *args, **options):
            refuse("error")
            try:
                yield batch
            finally:
                refuse("default")
            steps.append(len(steps))

    def meeting(*args: Any, **options: Any) -> None:
        refuse("default")
        hold(*args, **options)
        refuse("error")

    # Phase: patch the loop
    with patch.object(TrainFeed, "epoch", refusing), patch.object(loop._Meeting, "hold", meeting):
        yield steps


@contextmanager
def _signal(after_steps: int) -> Iterator[None]:
    """Send SIGTERM to this process after `after_steps` training steps."""
    taken = 0

    def reach(point: str) -> None:
        nonlocal taken
        taken += 1
        if taken == after_steps:
            os.kill(os.getpid(), signal.SIGTERM)

    with patch.object(loop, "reach", reach):
        yield
