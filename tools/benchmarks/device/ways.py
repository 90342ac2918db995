"""Ways to take a training step, timed in turns: plain PyTorch, the harness's loop, the published scripts' way."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.common.seeds import SgdNoise
from harness.config import OptimConfig, Precision, Schedule
from harness.distributed.world import World
from harness.masks import Mask
from harness.models import build_model, partition_of
from harness.pruning import METHODS, ForwardView, NormState, prune
from harness.training.loop import Batches, train
from harness.training.optim import build_optimizer
from tools.benchmarks.device.published import PublishedStep, convert_

WARM_UP_STEPS = 3
OPTIM = OptimConfig(name="sgd", lr=0.01, momentum=0.9, weight_decay=5e-4)


@dataclass(frozen=True)
class Case:
    """One network at one batch size, and how long it is timed."""

    model: str
    batch_size: int
    image_size: int
    num_classes: int
    steps: int
    rounds: int
    precision: Precision = "bf16"


BatchesOf = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
"""Of a number of steps, their (images_NCHW, labels_N), normalised and on the device."""

Seconds = Callable[[int], float]
"""Of a number of steps, how long they take together; a few untimed ones go before."""


class Network:
    """A half-trained network's θ ⊙ m, m and ψ_init, the same for every way."""

    def __init__(self, case: Case, device: torch.device) -> None:
        torch.manual_seed(0)
        model = build_model(case.model, num_classes=case.num_classes, channels=3, image_size=case.image_size)
        partition = partition_of(case.model, model)
        params = {name: param.detach() for name, param in model.named_parameters()}
        self.initial = {name: params[name].clone().to(device) for name in sorted(partition.norm)}
        self.mask: Mask = prune(params, Mask.dense(params, partition.prunable), 0.8)
        self.mask.apply_(params)
        for name in partition.norm:
            params[name].add_(0.1 * torch.randn(params[name].shape))
        self._model, self.device = model.train(), device

    def model(self, *, channels_last: bool = True) -> nn.Module:
        """Return a copy to train."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return copy.deepcopy(self._model).to(self.device).to(memory_format=layout)

    def view(self, model: nn.Module, method: str) -> ForwardView:
        """Return what a method's forward pass sees."""
        params = dict(model.named_parameters())
        return METHODS[method].forward_view(NormState([params[n] for n in self.initial], list(self.initial.values())))


@dataclass
class _Clocked:
    """The batches of a loop; it times the loop that asks for them, from the first after the warm-up to the last."""

    batches: BatchesOf
    steps: int
    device: torch.device
    seconds: float = field(default=0.0)

    @property
    def steps_per_epoch(self) -> int:
        return WARM_UP_STEPS + self.steps

    def epoch(self, noise: SgdNoise, epoch: int, skip_steps: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        started = 0.0
        for index, batch in enumerate(self.batches(self.steps_per_epoch)):
            if index == WARM_UP_STEPS:
                started = now(self.device)
            yield batch
        self.seconds = now(self.device) - started


def now(device: torch.device) -> float:
    """Return the time after everything asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def plain_way(model: nn.Module, world: World, batches: BatchesOf) -> Seconds:
    """Return the dense step everyone writes: autocast, forward, backward, the same fused optimizer."""
    optimizer = build_optimizer(model.parameters(), OPTIM, fused=world.device.type == "cuda")
    dtype = torch.bfloat16 if world.precision == "bf16" else torch.float32

    def step(images_NCHW: Tensor, labels_N: Tensor) -> None:
        with torch.autocast(world.device.type, dtype, enabled=dtype != torch.float32):
            logits_NK = model(images_NCHW)
        F.cross_entropy(logits_NK.float(), labels_N).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return _looped(step, world.device, batches)


def published_way(network: Network, batches: BatchesOf, compiled: str) -> Seconds:
    """Return the published scripts' step; see `tools.benchmarks.device.published`."""
    masks = {name: kept.to(network.device) for name, kept in network.mask.tensors.items()}
    model = convert_(network.model(channels_last=False), masks, network.initial)
    compile_(model, compiled)
    optimizer = torch.optim.SGD(model.parameters(), OPTIM.lr, OPTIM.momentum, weight_decay=OPTIM.weight_decay)
    step = PublishedStep(model, optimizer, random.Random(0))
    return _looped(lambda images, labels: step(images.contiguous(), labels), network.device, batches)


def _looped(
    step: Callable[[Tensor, Tensor], None],
    device: torch.device,
    batches: BatchesOf,
) -> Seconds:
    def seconds(steps: int) -> float:
        clocked = _Clocked(batches, steps, device)
        for images_NCHW, labels_N in clocked.epoch(SgdNoise(1, ("search", 1)), 0):
            step(images_NCHW, labels_N)
        return clocked.seconds

    return seconds


def our_way(
    network: Network,
    model: nn.Module,
    world: World,
    method: str,
    batches: BatchesOf,
) -> Seconds:
    """Return the harness's own loop, all of it."""
    view = network.view(model, method)

    def seconds(steps: int) -> float:
        clocked = _Clocked(batches, steps, network.device)
        loop_batches: Batches = clocked
        train(
            model,
            world=world,
            batches=loop_batches,
            noise=SgdNoise(1, ("search", 1)),
            optim=OPTIM,
            schedule=Schedule(1, "constant"),
            mask=network.mask,
            view=view,
            label="benchmark",
            on_epoch=lambda report: None,
        )
        return clocked.seconds

    return seconds


def compile_(model: nn.Module, how: str) -> None:
    """Compile in place, so that parameters keep their names: "" not at all, "eager" traced alone, else a mode."""
    if how == "eager":
        model.compile(backend="eager")
    elif how:
        model.compile(mode=how)


@dataclass
class Timed:
    """What was seen of one way."""

    rates: list[float] = field(default_factory=list)
    """Images a second, one for each round."""
    graphs: int = 0
    """Compiled by torch.compile while it was timed."""

    @property
    def rate(self) -> float:
        """Images a second, median of the rounds."""
        return median(self.rates)

    def ratio(self, other: Timed) -> float:
        """How many times as fast as `other`: the median over the rounds, in which each had its turn."""
        return median(mine / theirs for mine, theirs in zip(self.rates, other.rates, strict=True))


def in_turns(case: Case, ways: Mapping[str, Seconds]) -> dict[str, Timed]:
    """Time all ways in every round; the order turns round from one round to the next. One untimed turn goes before."""
    found = {name: Timed() for name in ways}
    for way in ways.values():  # compiles, and lets the device settle on its kernels
        way(2)
    for number in range(case.rounds):
        for name in sorted(ways, reverse=bool(number % 2)):
            before = _graphs_compiled()
            found[name].rates.append(case.batch_size * case.steps / ways[name](case.steps))
            found[name].graphs += _graphs_compiled() - before
    return found


def _graphs_compiled() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
