"""Weight rewinding (Frankle et al. 2020, "Linear mode connectivity and the lottery ticket hypothesis").

θ_k are the parameters of level 0 after k epochs or steps. Every level t ≥ 1 trains θ_k ⊙ mₜ with a fresh optimizer.
Its learning-rate schedule and data order also start at k. So such a level takes k fewer steps than level 0.
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
"""File in the run of level 0 that stores [θ_k, buffers]."""


class WeightRewinding(IMP):
    """IMP with parameters, schedule and data order rewound to step k instead of step 0."""

    drawn_file = THETA_K

    def determinants(self, config: SearchConfig, steps_per_epoch: int) -> dict[str, Any]:
        """Return k in steps."""
        return {"rewind_steps": rewind_steps(config, steps_per_epoch)}

    def start(self, ctx: LevelContext) -> StartPoint:
        """Return θ_k ⊙ mₜ, or θ₀ for level 0."""
        if ctx.level == 0:
            return super().start(ctx)
        point, steps = ctx.read(THETA_K), rewind_steps(ctx.config, ctx.steps_per_epoch) if ctx.steps_per_epoch else 0
        return StartPoint.masked(point.params, point.buffers, ctx.mask, epochs=ctx.parent.epochs, begin_steps=steps)

    def training_hook(self, ctx: LevelContext) -> TrainingHook | None:
        """Return the hook that stores θ_k during level 0; None for later levels."""
        steps = rewind_steps(ctx.config, ctx.steps_per_epoch)
        return RewindPoint(steps, ctx.steps_per_epoch) if ctx.level == 0 else None


def rewind_steps(config: SearchConfig, steps_per_epoch: int) -> int:
    """Return k in optimizer steps.

    Raises:
        ValueError: Level 0 has k steps or fewer.
    """
    steps = config.rewind_to * (steps_per_epoch if config.rewind_unit == "epochs" else 1)
    if steps >= config.final.epochs * steps_per_epoch:
        raise ValueError(
            f"rewind_to is {config.rewind_to} {config.rewind_unit}, but a training has {config.final.epochs} epochs of "
            f"{steps_per_epoch} steps; rewind to an earlier point"
        )
    return steps


class RewindPoint(TrainingHook):
    """Training hook that copies [θ_k, buffers] after step k."""

    def __init__(self, steps: int, steps_per_epoch: int) -> None:
        self.steps, self.steps_per_epoch = steps, steps_per_epoch
        # Kept on the network's device: copying them to the CPU within a step would synchronise once per tensor.
        self._params: dict[str, torch.Tensor] = {}
        self._buffers: dict[str, torch.Tensor] = {}

    @property
    def params(self) -> dict[str, torch.Tensor]:
        """Return θ_k on the CPU; empty before step k."""
        return {name: tensor.cpu() for name, tensor in self._params.items()}

    @property
    def buffers(self) -> dict[str, torch.Tensor]:
        """Return the buffers after step k, on the CPU; empty before step k."""
        return {name: tensor.cpu() for name, tensor in self._buffers.items()}

    def attach(self, model: nn.Module) -> None:
        """Store a reference to the network, and copy it at once if k = 0."""
        self._model = model
        if self.steps == 0:
            self._keep()

    def after_step(self, epoch: int, steps: int) -> None:
        """Copy the network after step k."""
        if epoch * self.steps_per_epoch + steps == self.steps:
            self._keep()

    def state(self) -> dict[str, torch.Tensor]:
        """Return [θ_k, buffers] for the checkpoint of an unfinished training; empty before step k."""
        return {f"param.{n}": t for n, t in self.params.items()} | {f"buffer.{n}": t for n, t in self.buffers.items()}

    def restore_(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore [θ_k, buffers] when a training resumes."""
        for kind, kept in (("param.", self._params), ("buffer.", self._buffers)):
            kept.update({name.removeprefix(kind): tensors[name] for name in tensors if name.startswith(kind)})

    def networks(self, trained: Checkpoint) -> dict[str, Checkpoint]:
        """Return [θ_k, buffers] as a second checkpoint of the run."""
        return {THETA_K: Checkpoint(self.params, self.buffers, 0, 0, trained.level_digest)}

    def _keep(self) -> None:
        # Adding 0.0 copies, and turns −0.0 into +0.0 as checkpoints do.
        self._params = {name: param.detach() + 0.0 for name, param in self._model.named_parameters()}
        self._buffers = {name: buffer.detach().clone() for name, buffer in self._model.named_buffers()}
