"""The state from which a training resumes between two steps, as plain tensors and numbers.

Data order, augmentation, α and dropout need no state: they are functions of (sgd_seed, scope, epoch, step).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from harness.pruning import TrainingHook

TALLY = "tally"
_HOOK = "companion."


@dataclass(frozen=True)
class TrainingState:
    """The state of a training after `step` steps of `epoch`, equal on every rank."""

    epoch: int
    step: int
    seconds: float
    """Time spent in this epoch so far."""
    tensors: dict[str, torch.Tensor]
    """Tensors on the CPU. When a state is saved, only rank 0 has them.

    Names: param.<name>, buffer.<name>, optimizer.<slot>.<name>, companion.<name> (the hook's state), and TALLY (the
    sums of this epoch).
    """
    scaler: dict[str, Any]
    """State of the fp16 loss scaler. Empty in other precisions."""
    is_last: bool = False
    """Whether the training stops after it is saved. Then a state that cannot be saved is an error."""


class SavesStates(Protocol):
    """Saves and loads training states."""

    @property
    def most_steps(self) -> int | None:
        """Return the longest allowed interval between two calls of `due`, in steps; None for no limit."""

    def due(self, epoch: int, steps: int) -> bool:
        """Return whether it is time to save, after `steps` steps of `epoch`. Only rank 0's answer counts."""

    def save(self, state: TrainingState) -> None:
        """Replace the saved state by rank 0's `state`. All ranks must call this at the same step."""

    def load(self) -> TrainingState | None:
        """Return the newest intact state on every rank, or None if there is none."""


def capture(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, hook: TrainingHook | None = None
) -> dict[str, torch.Tensor]:
    """Copy parameters, buffers, optimizer slots and the hook's state to the CPU, by name."""
    params = dict(model.named_parameters())
    tensors: dict[str, torch.Tensor] = {f"param.{name}": param for name, param in params.items()}
    tensors |= {f"buffer.{name}": buffer for name, buffer in model.named_buffers()}
    for name, param in params.items():
        for slot, value in optimizer.state.get(param, {}).items():
            if value is not None:  # SGD's momentum is None before the first step
                tensors[f"optimizer.{slot}.{name}"] = torch.as_tensor(value)
    tensors |= {f"{_HOOK}{name}": tensor for name, tensor in (hook.state() if hook else {}).items()}
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def hook_state(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the hook's part of a captured state."""
    return {name.removeprefix(_HOOK): tensor for name, tensor in tensors.items() if name.startswith(_HOOK)}


@torch.no_grad()
def restore_(model: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load a captured state into a model and its new optimizer, which must be of the same type."""
    params = dict(model.named_parameters())
    for name, param in params.items():
        param.copy_(tensors[f"param.{name}"])
    for name, buffer in model.named_buffers():
        buffer.copy_(tensors[f"buffer.{name}"])
    slots: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "optimizer":
            slot, _, name = rest.partition(".")
            # Slots have the parameters' memory layout: an update with mismatched strides takes twice as long.
            same = tensor.shape == params[name].shape
            value = torch.empty_like(params[name]).copy_(tensor) if same and tensor.ndim else tensor
            slots.setdefault(name, {})[slot] = value
    groups = optimizer.state_dict()["param_groups"]
    trained = [name for name, param in params.items() if param.requires_grad]
    states = {number: slots[name] for number, name in enumerate(trained) if name in slots}
    optimizer.load_state_dict({"state": states, "param_groups": groups})
