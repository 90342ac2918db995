"""One process without Accelerate: a machine that has PyTorch and little else can search, train and analyse too.

The first two classes are what `World` uses of Accelerate's PartialState and Accelerator, in plain PyTorch. A training
gives the same bits with either.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

_DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class SingleProcessState:
    """The one process of a launch: rank 0 of 1, on the first GPU if there is one."""

    process_index = 0
    num_processes = 1

    def __init__(self) -> None:
        self.device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")

    def destroy_process_group(self) -> None:
        """There is none to leave."""


class SingleProcessAccelerator:
    """Mixed precision of one process: autocast, and under fp16 a loss scale."""

    def __init__(self, precision: str, device: torch.device) -> None:
        self._device, self._dtype = device, _DTYPES[precision]
        self.scaler = torch.amp.GradScaler(device.type) if precision == "fp16" else None
        self._optimizer: torch.optim.Optimizer | None = None

    def free_memory(self) -> None:
        """Let the last training's optimizer go."""
        self._optimizer = None

    def prepare(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[torch.nn.Module, Any]:
        """Return the model itself, and an optimizer whose step goes through the loss scale if there is one."""
        self._optimizer = optimizer
        return model, optimizer if self.scaler is None else ScaledOptimizer(optimizer, self.scaler)

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision, or none."""
        return nullcontext() if self._dtype is None else torch.autocast(self._device.type, self._dtype)

    def no_sync(self, model: torch.nn.Module) -> AbstractContextManager[Any]:
        """One process reduces nothing."""
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Backward through the loss, scaled under fp16."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def clip_grad_norm_(self, params: list[torch.nn.Parameter], max_norm: float) -> None:
        """Unscale and clip gradients to a 2-norm."""
        if self.scaler is not None:
            assert self._optimizer is not None
            self.scaler.unscale_(self._optimizer)
        torch.nn.utils.clip_grad_norm_(params, max_norm)


class ScaledOptimizer:
    """An optimizer that unscales gradients, leaves out the step if one of them overflowed, and adapts the scale."""

    def __init__(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        self._optimizer, self._scaler = optimizer, scaler

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's own, to set the learning rate in."""
        return self._optimizer.param_groups

    def step(self) -> None:
        """Step, unless a gradient is not finite."""
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        self._optimizer.zero_grad(set_to_none=set_to_none)
