"""An AWS training step against the same network's plain PyTorch step.

Ours is a whole turn of the real loop, `harness.training.loop.train`: it asks for the next batch when it is done with
one, so the batches here hold the clock. Theirs is forward, backward, the same optimizer with the same flags, and
nothing else. Both networks start from the same values in the same memory format, and take turns at going first.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F

from harness.common.seeds import SgdNoise
from harness.config import OptimConfig, Schedule
from harness.distributed.world import World
from harness.masks import Mask
from harness.models import build_model, partition_of
from harness.pruning import METHODS, NormState, prune
from harness.training.loop import train
from harness.training.optim import build_optimizer
from tools.benchmarks.row import Row

GOAL = 1.03
WARM_UP_PAIRS = 3
OPTIM = OptimConfig(name="sgd", lr=0.01, momentum=0.9, weight_decay=5e-4)


@dataclass(frozen=True)
class Case:
    """One network at one batch size, on 32×32 images."""

    model: str
    batch_size: int
    pairs: int
    pairs_quick: int


CASES = (Case("resnet20", 128, 400, 10), Case("resnet50_cifar", 16, 200, 3))


def rows(quick: bool) -> list[Row]:
    """Measure one step of AWS on each network."""
    world = World()
    return [_row(world, case, case.pairs_quick if quick else case.pairs) for case in CASES]


@dataclass
class _TimedPairs:
    """The batches of a training; between them it times the loop that asks for them, and a plain step beside it."""

    plain: PlainStep
    images_NCHW: torch.Tensor
    labels_N: torch.Tensor
    pairs: int
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    @property
    def steps_per_epoch(self) -> int:
        return WARM_UP_PAIRS + self.pairs

    def epoch(self, noise: SgdNoise, epoch: int, skip_steps: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for pair in range(self.steps_per_epoch):
            if pair % 2:
                self.theirs.append(self._seconds_of_plain())
            started = _now(self.images_NCHW.device)
            yield self.images_NCHW, self.labels_N
            self.ours.append(_now(self.images_NCHW.device) - started)
            if not pair % 2:
                self.theirs.append(self._seconds_of_plain())

    def _seconds_of_plain(self) -> float:
        started = _now(self.images_NCHW.device)
        self.plain(self.images_NCHW, self.labels_N)
        return _now(self.images_NCHW.device) - started


class PlainStep:
    """The step everyone writes."""

    def __init__(self, model: torch.nn.Module, optim: OptimConfig, device: torch.device) -> None:
        self.model = model.train()
        self.optimizer = build_optimizer(model.parameters(), optim, fused=device.type == "cuda")

    def __call__(self, images_NCHW: torch.Tensor, labels_N: torch.Tensor) -> None:
        """Forward, backward, update."""
        F.cross_entropy(self.model(images_NCHW), labels_N).backward()
        self.optimizer.step()
        # last, as in ours: gradients kept until the next turn would leave the memory to reuse to one side alone
        self.optimizer.zero_grad()


def _row(world: World, case: Case, pairs: int) -> Row:
    torch.manual_seed(0)
    model = build_model(case.model, num_classes=100, channels=3, image_size=32)
    partition = partition_of(case.model, model)
    initial = {name: param.detach().clone() for name, param in model.named_parameters()}
    mask = prune(initial, Mask.dense(initial, partition.prunable), 0.8)
    model = model.to(memory_format=torch.channels_last).to(world.device)
    mask.apply_({name: param.data for name, param in model.named_parameters()})
    images_NCHW = torch.randn(case.batch_size, 3, 32, 32).to(world.device, memory_format=torch.channels_last)
    labels_N = torch.randint(100, (case.batch_size,)).to(world.device)
    pairs_timed = _TimedPairs(PlainStep(copy.deepcopy(model), OPTIM, world.device), images_NCHW, labels_N, pairs)
    params = dict(model.named_parameters())
    norm = sorted(partition.norm)
    train(
        model,
        world=world,
        batches=pairs_timed,
        noise=SgdNoise(1, ("search", 1)),
        optim=OPTIM,
        schedule=Schedule(1, "constant"),
        mask=mask,
        view=METHODS["aws"].forward_view(
            NormState([params[name] for name in norm], [initial[name].to(world.device) for name in norm])
        ),
        label="benchmark",
        on_epoch=lambda report: None,
    )
    ours, theirs = (times[WARM_UP_PAIRS:] for times in (pairs_timed.ours, pairs_timed.theirs))
    ratios = np.array(ours) / np.array(theirs)
    low, high = median_interval(ratios)
    middle = float(np.median(ratios))
    return Row(
        name=f"AWS step / plain step, {case.model} at 32×32, batch {case.batch_size} [s]",
        ours=median(ours),
        reference=median(theirs),
        ratio=middle,
        goal=f"≤ {GOAL}×",
        reached=middle <= GOAL,
        low=low,
        high=high,
        note=f"median of {pairs} pairs, 95 % bootstrap; {world.device.type}, density {mask.density:.2f}, channels_last",
    )


def median_interval(values_N: np.ndarray, resamples: int = 4000) -> tuple[float, float]:
    """Return the 95 % interval of the median by the percentile bootstrap."""
    generator = np.random.Generator(np.random.Philox(key=0))
    drawn = generator.integers(len(values_N), size=(resamples, len(values_N)))
    low, high = np.percentile(np.median(values_N[drawn], axis=1), (2.5, 97.5))
    return float(low), float(high)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
