"""The state of a training between two steps: everything that determines what follows, as plain tensors and numbers.

Order, augmentation, α and dropout need no state: they are functions of (sgd_seed, scope, epoch, step).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from harness.pruning import Companion

TALLY = "tally"
_COMPANION = "companion."


@dataclass(frozen=True)
class TrainingState:
    """A training after `step` steps of `epoch`, the same on every rank."""

    epoch: int
    step: int
    seconds: float
    """Spent in this epoch so far."""
    tensors: dict[str, torch.Tensor]
    """On the CPU: param.<name>, buffer.<name>, optimizer.<slot>.<name>, companion.<name>, and this epoch's sums
    under TALLY.

    Given to `save` on rank 0 alone.
    """
    scaler: dict[str, Any]
    """fp16's loss scale; empty without."""


class StateKeeper(Protocol):
    """Where states go. `save` is called on every rank at the same step, and keeps rank 0's."""

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
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, companion: Companion | None = None
) -> dict[str, torch.Tensor]:
    """Return parameters, buffers, optimizer slots and a companion's state by name.

    None shares memory with the training.
    """
    params = dict(model.named_parameters())
    tensors: dict[str, torch.Tensor] = {f"param.{name}": param for name, param in params.items()}
    tensors |= {f"buffer.{name}": buffer for name, buffer in model.named_buffers()}
    for name, param in params.items():
        for slot, value in optimizer.state.get(param, {}).items():
            if value is not None:  # SGD's momentum before its first step
                tensors[f"optimizer.{slot}.{name}"] = torch.as_tensor(value)
    tensors |= {f"{_COMPANION}{name}": tensor for name, tensor in (companion.state() if companion else {}).items()}
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def kept_by_companion(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what a companion's `state` was, of a captured state."""
    names = [name for name in tensors if name.startswith(_COMPANION)]
    return {name.removeprefix(_COMPANION): tensors[name] for name in names}


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
