"""A half-trained network, batches that lie on the device, and the ways to train it that are timed."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.common.seeds import SgdNoise
from harness.config import OptimConfig, Schedule
from harness.data import TrainLoader
from harness.data.loaders import TrainOrder
from harness.data.memory_loader import ResidentSplit
from harness.data.spec import CropFlip, DataSpec, RawSource
from harness.distributed.world import World
from harness.masks import Mask
from harness.models import build_model, partition_of
from harness.pruning import METHODS, NormState, prune
from harness.training.feed import TrainFeed, normalize
from harness.training.loop import Batches, build_optimizer, train
from tools.benchmarks.published import PublishedStep

WARM_UP_STEPS = 3
OPTIM = OptimConfig(name="sgd", lr=0.01, momentum=0.9, weight_decay=5e-4)
NOISE = SgdNoise(1, ("search", 1))
Step = Callable[[Tensor, Tensor], None]
BatchesOf = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
"""Takes a number of steps; yields their (images_NCHW, labels_N), normalised and on the device."""


@dataclass(frozen=True)
class Case:
    """One network at one batch size, and how long it is timed."""

    model: str
    batch_size: int
    image_size: int
    num_classes: int
    steps: int
    rounds: int

    def build(self) -> nn.Module:
        """Return a fresh network."""
        return build_model(self.model, num_classes=self.num_classes, channels=3, image_size=self.image_size)

    def spec(self, padding: int = 0) -> DataSpec:
        """Return the entry of made-up RGB images that are cropped out of `padding` pixels and flipped."""
        half, crop = (0.5, 0.5, 0.5), CropFlip(padding, flip=True)
        return DataSpec("random", self.num_classes, 3, self.image_size, half, half, crop, RawSource("random"))

    def images(self, device: torch.device, number: int) -> tuple[Tensor, Tensor]:
        """Return random (images_NHWC, labels_N) on the device, uint8."""
        images_NHWC = torch.randint(
            256, (number, self.image_size, self.image_size, 3), dtype=torch.uint8, device=device
        )
        return images_NHWC, torch.randint(self.num_classes, (number,), device=device)

    def batches(self, device: torch.device, *, from_uint8: bool = False) -> BatchesOf:
        """Return one batch as often as asked, normalised once, or from uint8 anew each time."""
        images_NHWC, labels_N = self.images(device, self.batch_size)
        once_NCHW = normalize(images_NHWC, self.spec(), True)

        def batch() -> tuple[Tensor, Tensor]:
            return normalize(images_NHWC, self.spec(), True) if from_uint8 else once_NCHW, labels_N

        return lambda steps: (batch() for _ in range(steps))

    def augmented(self, device: torch.device, num_images: int) -> BatchesOf:
        """Return the batches of the memory loader: keyed by seed and epoch, cropped, flipped and normalised."""
        images_NHWC, labels_N = self.images(device, num_images)
        padding, spec = self.image_size // 8, self.spec(self.image_size // 8)
        split = ResidentSplit(spec, F.pad(images_NHWC, (0, 0, *4 * [padding])), labels_N)
        feed = TrainFeed(TrainLoader(split, TrainOrder(num_images, self.batch_size, 0, 1)), spec, device)

        def batches(steps: int) -> Iterator[tuple[Tensor, Tensor]]:
            for epoch, done in enumerate(range(0, steps, feed.steps_per_epoch)):
                yield from feed.epoch(NOISE, epoch, num_steps=min(steps - done, feed.steps_per_epoch))

        return batches


class SparseNetwork:
    """A half-trained network's θ ⊙ m, m and ψ_init, the same for every way."""

    def __init__(self, case: Case, world: World) -> None:
        torch.manual_seed(0)
        self.case, self.world, self._model = case, world, case.build().train()
        partition = partition_of(case.model, self._model)
        params = {name: param.detach() for name, param in self._model.named_parameters()}
        self.initial = {name: params[name].clone().to(world.device) for name in sorted(partition.norm)}
        self.mask: Mask = prune(params, Mask.dense(params, partition.prunable), 0.8)
        self.mask.apply_(params)
        for name in partition.norm:
            params[name].add_(0.1 * torch.randn(params[name].shape))

    def model(self, layout: torch.memory_format = torch.channels_last) -> nn.Module:
        """Return a copy to train."""
        return copy.deepcopy(self._model).to(self.world.device).to(memory_format=layout)

    def train(self, model: nn.Module, method: str, batches: Batches) -> None:
        """Train for an epoch by the harness's own loop, all of it."""
        params = dict(model.named_parameters())
        norm = NormState([params[name] for name in self.initial], list(self.initial.values()))
        settings: dict[str, Any] = {"noise": NOISE, "optim": OPTIM, "schedule": Schedule(1, "constant")}
        settings |= {"mask": self.mask, "view": METHODS[method].view(norm), "label": "benchmark"}
        train(model, world=self.world, batches=batches, on_epoch=lambda report: None, **settings)

    def published_step(self, draw: Callable[[], float]) -> PublishedStep:
        """Return the published scripts' step."""
        masks = {name: kept.to(self.world.device) for name, kept in self.mask.tensors.items()}
        return PublishedStep(self.model(torch.contiguous_format), masks, self.initial, draw)

    def way(self, method: str, batches: BatchesOf, compiled: str = "", case: Case | None = None) -> Callable[[], float]:
        """Return a function that trains for the steps of the case, after some untimed ones, and returns images/s.

        Args:
            method: A pruning method by the harness's loop, "plain" or "published".
            batches: What it trains on.
            compiled: Mode of torch.compile; on a CPU the network is traced alone.
            case: Another batch size or number of steps than the network's.
        """
        case, model = case or self.case, self.model()
        step: Step | None = None
        if compiled:  # in place, so that parameters keep their names
            model.compile(**{"mode": compiled} if self.world.device.type == "cuda" else {"backend": "eager"})
        if method == "published":
            step = self.published_step(random.Random(0).random)
        elif method == "plain":
            step = plain_step(model, self.world)

        def rate() -> float:
            clocked = Clocked(batches, case.steps, self.world.device)
            if step is None:
                self.train(model, method, clocked)
            else:
                clocked.run(step)
            return case.batch_size * case.steps / clocked.seconds

        return rate


@dataclass
class Clocked:
    """The batches of a loop; it times the loop that asks for them, from the first after the warm-up to the last."""

    batches: BatchesOf
    steps: int
    device: torch.device
    seconds: float = 0.0

    @property
    def steps_per_epoch(self) -> int:
        """All of them, those to warm up included."""
        return WARM_UP_STEPS + self.steps

    def epoch(self, noise: SgdNoise, epoch: int, skip_steps: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every batch."""
        started = 0.0
        for index, batch in enumerate(self.batches(self.steps_per_epoch)):
            started = now(self.device) if index == WARM_UP_STEPS else started
            yield batch
        self.seconds = now(self.device) - started

    def run(self, step: Step) -> float:
        """Take the steps; return the seconds."""
        for batch in self.epoch(NOISE, 0):
            step(*batch)
        return self.seconds


def now(device: torch.device) -> float:
    """Return the time after everything asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def plain_step(model: nn.Module, world: World) -> Step:
    """Return the dense step everyone writes: autocast, forward, backward, the same fused optimizer."""
    optimizer = build_optimizer(model.parameters(), OPTIM, fused=world.device.type == "cuda")

    def step(images_NCHW: Tensor, labels_N: Tensor) -> None:
        with torch.autocast(world.device.type, torch.bfloat16, enabled=world.precision == "bf16"):
            logits_NK = model(images_NCHW)
        F.cross_entropy(logits_NK.float(), labels_N).backward()
        optimizer.step()
        # last, as in ours: gradients kept until the next turn would leave the memory to reuse to one side alone
        optimizer.zero_grad()

    return step
