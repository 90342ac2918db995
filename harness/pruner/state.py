"""The state of a SignPruner as tensors by name, which safetensors can write without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from harness.checkpoint import Checkpoint
from harness.common.digest import canonical_json
from harness.masks import Mask

FORMAT = "harness.sign_pruner/1"
_HEADER = "metadata"
_THETA_INIT = "theta_init"
_HEADER_TYPES = {
    "settings": dict,
    "plan": dict,
    "status": str,
    "level": int,
    "steps": int,
    "begin_steps": int,
    "start_digest": str,
    "logged": dict,
}
"""Fields of SavedSearch that are no tensors."""


@dataclass(frozen=True)
class SavedSearch:
    """A search between two steps."""

    settings: dict[str, Any]
    """Arguments of SignPruner. They must be equal when the search continues."""
    plan: dict[str, Any]
    """Arguments of `levels`; empty before it was called."""
    status: str
    level: int
    steps: int
    """Finished steps of the level."""
    begin_steps: int
    start_digest: str
    """Digest of the parameters that the level started from."""
    logged: dict[str, Any]
    """Keys of the runs that `log` committed; empty without."""
    mask: Mask
    theta_init: Checkpoint
    networks: dict[str, Checkpoint]
    """Networks of level 0 that later levels start from, by file name."""
    hook: dict[str, torch.Tensor]
    """State of the method's hook."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return copies of all tensors, on the CPU. One holds the numbers and texts as JSON."""
        header = {"format": FORMAT} | {name: getattr(self, name) for name in _HEADER_TYPES}
        tensors = {f"mask.{name}": kept for name, kept in self.mask.tensors.items()}
        tensors |= {f"hook.{name}": tensor for name, tensor in self.hook.items()}
        for file, network in {_THETA_INIT: self.theta_init, **self.networks}.items():
            tensors |= {f"network.{file}/param.{name}": tensor for name, tensor in network.params.items()}
            tensors |= {f"network.{file}/buffer.{name}": tensor for name, tensor in network.buffers.items()}
        tensors[_HEADER] = torch.frombuffer(bytearray(canonical_json(header).encode()), dtype=torch.uint8)
        return {name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> SavedSearch:
        """Read the tensors that `tensors` returned.

        Raises:
            ValueError: They are something else, or of another format.
        """
        try:
            header = json.loads(bytes(tensors[_HEADER].cpu().tolist()))
            found = header.pop("format")
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ValueError("this is no state of a SignPruner; give the result of its state_dict()") from None
        if found != FORMAT:
            raise ValueError(f"the state has format {found!r:.60}; this version reads {FORMAT}")
        files = {name.removeprefix("network.").partition("/")[0] for name in tensors if name.startswith("network.")}
        if {name: type(value) for name, value in header.items()} != _HEADER_TYPES or _THETA_INIT not in files:
            raise ValueError("the state is incomplete or was altered; give all tensors that state_dict() returned")
        networks = {file: _network(file, tensors) for file in files}
        mask, hook = Mask(_under("mask.", tensors)), _under("hook.", tensors)
        return cls(**header, mask=mask, theta_init=networks.pop(_THETA_INIT), networks=networks, hook=hook)


def _network(file: str, tensors: Mapping[str, torch.Tensor]) -> Checkpoint:
    params, buffers = (_under(f"network.{file}/{kind}.", tensors) for kind in ("param", "buffer"))
    return Checkpoint(params, buffers, 0, 0, "")


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return copies of the tensors with this prefix, on the CPU, without the prefix."""
    return {name.removeprefix(prefix): t.cpu().clone() for name, t in tensors.items() if name.startswith(prefix)}
