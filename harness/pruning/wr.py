"""Weight rewinding (Frankle et al. 2020, "Linear mode connectivity and the lottery ticket hypothesis").

Every level t ≥ 1 trains θ_k ⊙ mₜ, with θ_k the parameters of level 0 after k epochs or steps; the schedule and the
data order go on from k too, so such a level takes k fewer steps than level 0. The optimizer is new.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from harness.pruning.imp import start
from harness.pruning.lrr import forward_view

__all__ = ["RewindPoint", "forward_view", "start"]


class RewindPoint:
    """Keeps [θ_k, buffers] of the training it goes along with (a `Companion`)."""

    def __init__(self, rewind_steps: int, steps_per_epoch: int) -> None:
        self.rewind_steps, self.steps_per_epoch = rewind_steps, steps_per_epoch
        # where the network lies: fetched within a step, each of these tensors would make the host wait
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

    def attach(self, model: torch.nn.Module) -> None:
        """Take the network; k = 0 is its start."""
        self._model = model
        if self.rewind_steps == 0:
            self._keep()

    def after_step(self, epoch: int, steps: int) -> None:
        """Keep the network after step k."""
        if epoch * self.steps_per_epoch + steps == self.rewind_steps:
            self._keep()

    def after_epoch(self, epoch: int) -> None:
        """Nothing: k counts steps."""

    def state(self) -> dict[str, torch.Tensor]:
        """[θ_k, buffers] once they are there."""
        return {f"param.{n}": t for n, t in self.params.items()} | {f"buffer.{n}": t for n, t in self.buffers.items()}

    def restore_(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take [θ_k, buffers] of the interrupted training."""
        for kind, kept in (("param.", self._params), ("buffer.", self._buffers)):
            kept.update({name.removeprefix(kind): tensors[name] for name in tensors if name.startswith(kind)})

    def _keep(self) -> None:
        # as in a checkpoint, −0.0 becomes +0.0
        self._params = {name: param.detach() + 0.0 for name, param in self._model.named_parameters()}
        self._buffers = {name: buffer.detach().clone() for name, buffer in self._model.named_buffers()}
