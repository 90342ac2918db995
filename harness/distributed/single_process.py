"""Replacements in plain PyTorch for the parts of Accelerate that `World` uses.

They let a single process run where Accelerate is not installed. SingleProcessState replaces PartialState, and
SingleProcessAccelerator replaces Accelerator. A training has the same bits with either.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

_DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class SingleProcessState:
    """State of a single process: rank 0 of 1, on the first GPU if there is one."""

    process_index = 0
    num_processes = 1

    def __init__(self) -> None:
        self.device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")

    def destroy_process_group(self) -> None:
        """Do nothing: there is no process group."""


class SingleProcessAccelerator:
    """Mixed precision for a single process: autocast and, under fp16, a loss scaler."""

    def __init__(self, precision: str, device: torch.device) -> None:
        self._device, self._dtype = device, _DTYPES[precision]
        self.scaler = torch.amp.GradScaler(device.type) if precision == "fp16" else None
        self._optimizer: torch.optim.Optimizer | None = None

    def free_memory(self) -> None:
        """Drop the reference to the last optimizer."""
        self._optimizer = None

    def prepare(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[torch.nn.Module, Any]:
        """Return the model unchanged, and an optimizer that uses the loss scaler if there is one."""
        self._optimizer = optimizer
        return model, optimizer if self.scaler is None else ScaledOptimizer(optimizer, self.scaler)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the autocast context, or one that does nothing in full precision."""
        return nullcontext() if self._dtype is None else torch.autocast(self._device.type, self._dtype)

    def no_sync(self, model: torch.nn.Module) -> AbstractContextManager[Any]:
        """Return a context manager that does nothing, since a single process reduces no gradients."""
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Run the backward pass of the loss, scaled under fp16."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def clip_grad_norm_(self, params: list[torch.nn.Parameter], max_norm: float) -> None:
        """Unscale the gradients and clip their total 2-norm to `max_norm`."""
        if self.scaler is not None:
            assert self._optimizer is not None
            self.scaler.unscale_(self._optimizer)
        torch.nn.utils.clip_grad_norm_(params, max_norm)


class ScaledOptimizer:
    """An optimizer that unscales gradients, skips steps with overflow, and updates the loss scale."""

    def __init__(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        self._optimizer, self._scaler = optimizer, scaler

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Return the wrapped optimizer's parameter groups, in which the learning rate is set."""
        return self._optimizer.param_groups

    def step(self) -> None:
        """Update the parameters unless a gradient is not finite, then update the loss scale."""
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        self._optimizer.zero_grad(set_to_none=set_to_none)
