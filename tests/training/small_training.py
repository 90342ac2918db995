"""Train a tiny network on random images with the real loop."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from harness.common.seeds import SgdNoise
from harness.config import OptimConfig, Schedule
from harness.distributed import world as world_module
from harness.distributed.world import World
from harness.masks import Mask
from harness.models.partition import ParamPartition
from harness.pruning import METHODS, NormState
from harness.training.loop import EpochReport, train
from harness.training.resume import TrainingState

STEPS, BATCH, EPOCHS = 4, 8, 2


class Fixed:
    """Yield batches of random images, equal in every run.

    Args:
        bad_step: Index of a batch whose images are NaN.
        device: Device of the batches.
    """

    steps_per_epoch = STEPS

    def __init__(self, bad_step: int | None = None, device: torch.device | str = "cpu") -> None:
        generator = torch.Generator().manual_seed(3)
        self.images = torch.randn(STEPS, BATCH, 3, 8, 8, generator=generator).to(device)
        self.labels = torch.randint(5, (STEPS, BATCH), generator=generator).to(device)
        if bad_step is not None:
            self.images[bad_step] = float("nan")

    def epoch(self, noise: SgdNoise, epoch: int, skip_steps: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for step in noise.permutation(epoch, STEPS)[skip_steps:]:
            yield self.images[step], self.labels[step]


@dataclass(frozen=True)
class OnesNoise(SgdNoise):
    """The usual SGD noise with α = 1 at every step."""

    def alphas(self, epoch: int, num_steps: int) -> np.ndarray:
        return np.ones(num_steps)


def network(norm: type[nn.Module] | None = nn.BatchNorm2d) -> nn.Sequential:
    torch.manual_seed(0)
    middle = [norm(8)] if norm is nn.BatchNorm2d else [nn.LayerNorm([8, 6, 6])] if norm else []
    return nn.Sequential(nn.Conv2d(3, 8, 3), *middle, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))


def some_mask(model: nn.Module) -> Mask:
    generator = torch.Generator().manual_seed(1)
    weight = dict(model.named_parameters())["0.weight"]
    return Mask({"0.weight": torch.rand(weight.shape, generator=generator) < 0.4})


def run(model: nn.Module, world: World, **options) -> list[EpochReport]:
    reports: list[EpochReport] = []
    method = options.pop("method", "lrr")
    norm = sorted(ParamPartition.of(model, str(len(model) - 1)).norm)
    params = dict(model.named_parameters())
    state = NormState([params[n] for n in norm], [params[n].detach().clone() for n in norm])
    settings = {
        "batches": Fixed(device=world.device),
        "noise": SgdNoise(1, ("search", 0)),
        "optim": OptimConfig(lr=0.05, weight_decay=1e-2),
        "schedule": Schedule(EPOCHS, "step"),
        "mask": some_mask(model),
        "view": METHODS[method].view(state),
        "label": "aws L00",
        "on_epoch": reports.append,
    }
    train(model, world=world, **(settings | options))
    return reports


class Memory:
    """Keep the newest state; request a stop after `stop_after` steps."""

    most_steps = 1

    def __init__(self, world: Any, stop_after: int | None = None) -> None:
        self.world, self.stop_after = world, stop_after
        self.state: TrainingState | None = None
        self.asked = 0

    def due(self, epoch: int, steps: int) -> bool:
        self.asked += 1
        if self.asked == self.stop_after:
            self.world.stop._signal = 15
        return True

    def save(self, state: TrainingState) -> None:
        self.state = replace(state, tensors={name: tensor.clone() for name, tensor in state.tensors.items()})

    def load(self) -> TrainingState | None:
        return self.state


def noisy(dropout: float = 0.3) -> nn.Sequential:
    """Return the network with dropout, in channels-last format.

    The draws of dropout are part of the SGD noise u.
    """
    model = network()
    return nn.Sequential(*list(model)[:-1], nn.Dropout(dropout), model[-1]).to(memory_format=torch.channels_last)


def open_world(precision: str) -> Iterator[World]:
    """Yield a world of one process.

    Accelerate's global state is reset before and after.
    """
    forget_accelerate()
    yield World(precision)
    forget_accelerate()


def open_fp16_world_on_cpu() -> Iterator[World]:
    """Yield a world in fp16 with a loss scale on the CPU.

    This tests all but the kernels without a GPU. The harness refuses fp16 on a CPU. PyTorch itself supports it.
    """
    for world in open_world("no"):
        world._use("fp16")
        yield world


def begin_with_overflows(world: World) -> None:
    """Set the initial loss scale so high that the first steps overflow.

    The scale grows again after two finite steps.
    """
    assert world._fresh_scaler
    world._fresh_scaler |= {"scale": 2.0**20, "growth_interval": 2}


def forget_accelerate() -> None:
    if not world_module._has_accelerate():
        return
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
