"""The state of a training between two steps: everything that determines what follows, as plain tensors and numbers.

Order, augmentation, α and dropout need no state: they are functions of (sgd_seed, scope, epoch, step).
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
    """A training after `step` steps of `epoch`, the same on every rank."""

    epoch: int
    step: int
    seconds: float
    """Spent in this epoch so far."""
    tensors: dict[str, torch.Tensor]
    """On the CPU: param.<name>, buffer.<name>, optimizer.<slot>.<name>, companion.<name> (the hook's), and this epoch's
    sums under TALLY. On rank 0 alone when it is saved."""
    scaler: dict[str, Any]
    """fp16's loss scale; empty without."""


class SavesStates(Protocol):
    """Saves and loads states. `save` is called on every rank at the same step, and saves rank 0's."""

    @property
    def most_steps(self) -> int | None:
        """Ranks must meet at least this often for `due` to be kept; None: it does not matter."""

    def due(self, epoch: int, steps: int) -> bool:
        """Whether it is time to save, after `steps` steps of `epoch`; only rank 0's answer counts."""

    def save(self, state: TrainingState) -> None:
        """Keep this state instead of earlier ones."""

    def load(self) -> TrainingState | None:
        """Return the newest whole state on every rank, or None where there is none."""


def capture(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, hook: TrainingHook | None = None
) -> dict[str, torch.Tensor]:
    """Copy parameters, buffers, optimizer slots and a hook's state to the CPU, by name."""
    params = dict(model.named_parameters())
    tensors: dict[str, torch.Tensor] = {f"param.{name}": param for name, param in params.items()}
    tensors |= {f"buffer.{name}": buffer for name, buffer in model.named_buffers()}
    for name, param in params.items():
        for slot, value in optimizer.state.get(param, {}).items():
            if value is not None:  # SGD's momentum before its first step
                tensors[f"optimizer.{slot}.{name}"] = torch.as_tensor(value)
    tensors |= {f"{_HOOK}{name}": tensor for name, tensor in (hook.state() if hook else {}).items()}
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def hook_state(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the hook's part of a captured state."""
    return {name.removeprefix(_HOOK): tensor for name, tensor in tensors.items() if name.startswith(_HOOK)}


@torch.no_grad()
def restore_(model: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put a captured state into a model and a fresh optimizer of the same kind over its parameters."""
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
            # laid out like the parameter: an update over mismatched strides takes twice the time
            same = tensor.shape == params[name].shape
            value = torch.empty_like(params[name]).copy_(tensor) if same and tensor.ndim else tensor
            slots.setdefault(name, {})[slot] = value
    groups = optimizer.state_dict()["param_groups"]
    trained = [name for name, param in params.items() if param.requires_grad]
    states = {number: slots[name] for number, name in enumerate(trained) if name in slots}
    optimizer.load_state_dict({"state": states, "param_groups": groups})
