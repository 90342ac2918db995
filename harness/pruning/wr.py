"""Weight rewinding (Frankle et al. 2020, "Linear mode connectivity and the lottery ticket hypothesis").

Every level t ≥ 1 trains θ_k ⊙ mₜ, with θ_k the parameters of level 0 after k epochs or steps. The schedule and the
data order go on from k too, so such a level takes k fewer steps than level 0. The optimizer is new.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from harness.checkpoint import Checkpoint
from harness.config import SearchConfig
from harness.pruning.imp import IMP
from harness.pruning.method import LevelContext, StartPoint, TrainingHook

THETA_K = "theta_k.safetensors"
"""File of level 0 that keeps [θ_k, buffers]."""


class WeightRewinding(IMP):
    """IMP with parameters, schedule and data order rewound to step k instead of the start."""

    drawn_file = THETA_K

    def determinants(self, config: SearchConfig, steps_per_epoch: int) -> dict[str, Any]:
        """Return k in steps."""
        return {"rewind_steps": rewind_steps(config, steps_per_epoch)}

    def start(self, ctx: LevelContext) -> StartPoint:
        """Return θ_k ⊙ mₜ; level 0 starts from θ₀."""
        if ctx.level == 0:
            return super().start(ctx)
        point, steps = ctx.read(THETA_K), rewind_steps(ctx.config, ctx.steps_per_epoch) if ctx.steps_per_epoch else 0
        return StartPoint.masked(point.params, point.buffers, ctx.mask, epochs=ctx.parent.epochs, begin_steps=steps)

    def training_hook(self, ctx: LevelContext) -> TrainingHook | None:
        """Return the hook that keeps θ_k of level 0."""
        steps = rewind_steps(ctx.config, ctx.steps_per_epoch)
        return RewindPoint(steps, ctx.steps_per_epoch) if ctx.level == 0 else None


def rewind_steps(config: SearchConfig, steps_per_epoch: int) -> int:
    """Return k in optimizer steps; ValueError if the training ends before it."""
    steps = config.rewind_to * (steps_per_epoch if config.rewind_unit == "epochs" else 1)
    if steps >= config.final.epochs * steps_per_epoch:
        raise ValueError(
            f"rewind_to is {config.rewind_to} {config.rewind_unit}, but a training has {config.final.epochs} epochs of "
            f"{steps_per_epoch} steps; rewind to an earlier point"
        )
    return steps


class RewindPoint(TrainingHook):
    """Keeps [θ_k, buffers] of the training it goes along with."""

    def __init__(self, steps: int, steps_per_epoch: int) -> None:
        self.steps, self.steps_per_epoch = steps, steps_per_epoch
        # on the network's device: fetched within a step, each of these tensors would make the host wait
        self._params: dict[str, torch.Tensor] = {}
        self._buffers: dict[str, torch.Tensor] = {}

    @property
    def params(self) -> dict[str, torch.Tensor]:
        """θ_k on the CPU; empty before step k."""
        return {name: tensor.cpu() for name, tensor in self._params.items()}

    @property
    def buffers(self) -> dict[str, torch.Tensor]:
        """Buffers after step k, on the CPU."""
        return {name: tensor.cpu() for name, tensor in self._buffers.items()}

    def attach(self, model: nn.Module) -> None:
        """Take the network; k = 0 is its start."""
        self._model = model
        if self.steps == 0:
            self._keep()

    def after_step(self, epoch: int, steps: int) -> None:
        """Keep the network after step k."""
        if epoch * self.steps_per_epoch + steps == self.steps:
            self._keep()

    def state(self) -> dict[str, torch.Tensor]:
        """Return [θ_k, buffers] once they are there."""
        return {f"param.{n}": t for n, t in self.params.items()} | {f"buffer.{n}": t for n, t in self.buffers.items()}

    def restore_(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take [θ_k, buffers] of the interrupted training."""
        for kind, kept in (("param.", self._params), ("buffer.", self._buffers)):
            kept.update({name.removeprefix(kind): tensors[name] for name in tensors if name.startswith(kind)})

    def networks(self, trained: Checkpoint) -> dict[str, Checkpoint]:
        """Return θ_k as a network of its own."""
        return {THETA_K: Checkpoint(self.params, self.buffers, 0, 0, trained.level_digest)}

    def _keep(self) -> None:
        # as in a checkpoint, −0.0 becomes +0.0
        self._params = {name: param.detach() + 0.0 for name, param in self._model.named_parameters()}
        self._buffers = {name: buffer.detach().clone() for name, buffer in self._model.named_buffers()}
