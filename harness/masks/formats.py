"""Masks in the formats of other tools: dense tensors, torch.nn.utils.prune, and sparse CSR matrices."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn

from harness.common.tensors import check_fits, check_values, own_names, renamed


class HasStateDict(Protocol):
    """A checkpoint: an object whose attribute `state_dict` has tensors by name."""

    @property
    def state_dict(self) -> Mapping[str, torch.Tensor]: ...


Network = nn.Module | Mapping[str, torch.Tensor] | HasStateDict
"""A network, its state dict, or a checkpoint."""


def masked_state(masks: Mapping[str, torch.Tensor], network: Network) -> tuple[dict[str, Any], dict[str, str]]:
    """Return copies of a network's tensors with pruned weights set to +0.0.

    Args:
        masks: Bool tensors by parameter name.
        network: The network. It does not change.

    Returns:
        The state dict with the names of the unwrapped network, and {name of a mask: its key in the state dict}.

    Raises:
        TypeError: The network has no state dict.
        ValueError: The masks do not fit the network, or the network has no values.
    """
    # Phase: pair the masks with the tensors. Of two names, the shorter one lacks the prefix of a wrapper.
    state = _state_of(network)
    new = renamed(masks, state)
    keys = {new[key]: min(key, new[key], key=len) for key in state}
    named = {new[key]: value for key, value in state.items()}
    held = {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}
    check_values(held, "convert the network")
    shapes = {name: kept.shape for name, kept in masks.items()}
    check_fits(shapes, {name: value.shape for name, value in held.items()}, "the mask")

    # Phase: mask copies. Further names of a shared tensor get the same values, because they are loaded later.
    masked = {}
    for name, kept in masks.items():
        masked[place(held[name])] = held[name].detach().clone().masked_fill_(~kept.to(held[name].device), 0.0)
    result: dict[str, Any] = {}
    for name, value in named.items():
        copied = name in held
        result[keys[name]] = masked.get(place(value), value).detach().clone() if copied else value
    return result, {name: keys[name] for name in masks}


def to_dense(masks: Mapping[str, torch.Tensor], network: Network) -> dict[str, Any]:
    """Return the state dict θ ⊙ m."""
    return masked_state(masks, network)[0]


def to_torch_prune(masks: Mapping[str, torch.Tensor], network: Network) -> dict[str, Any]:
    """Return the state dict of a network that torch.nn.utils.prune has pruned by these masks."""
    state, keys = masked_state(masks, network)
    pruned = {key: name for name, key in keys.items()}
    result: dict[str, Any] = {}
    for key, value in state.items():
        if key in pruned:
            result[f"{key}_orig"] = value
            result[f"{key}_mask"] = masks[pruned[key]].to(value.device, value.dtype)
        else:
            result[key] = value
    return result


def to_csr(masks: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return sparse matrices of the kept values, also of those that are zero.

    Args:
        masks: Bool tensors by parameter name.
        values: Values by the same names.
    """
    result = {}
    for name, kept in masks.items():
        value = values[name].detach()
        rows = kept.shape[0] if kept.ndim else 1
        columns = kept.numel() // rows if rows else 0
        alive = kept.to(value.device).reshape(rows, columns)
        ends = torch.cat([torch.zeros(1, dtype=torch.int64, device=value.device), alive.sum(1).cumsum(0)])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*CSR.*beta.*", UserWarning)
            result[name] = torch.sparse_csr_tensor(
                ends,
                alive.nonzero()[:, 1],
                value.reshape(rows, columns)[alive],
                (rows, columns),
                check_invariants=True,
            )
    return result


def _state_of(network: Network) -> dict[str, Any]:
    """Return a state dict by the names of the unwrapped network."""
    if isinstance(network, nn.Module):
        state = network.state_dict()
        names = own_names(network, state)
        return {names[key]: value for key, value in state.items()} if len({*names.values()}) == len(state) else state
    found = network if isinstance(network, Mapping) else getattr(network, "state_dict", None)
    if not isinstance(found, Mapping):
        raise TypeError(f"give a network, its state dict or a checkpoint, not {type(network).__name__}")
    return dict(found)


def place(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return equal values for the tensors that share their values under several names."""
    if type(tensor) not in (torch.Tensor, nn.Parameter) or tensor.layout != torch.strided or not tensor.data_ptr():
        return (id(tensor),)
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
