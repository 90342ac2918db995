"""Checkpoint: parameters and buffers of one finished training, as a plain safetensors file.

Keys are the plain state-dict keys, so stock `safetensors.torch.load_file` + `load_state_dict` read it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from harness.digest import canonical_json, sha256_tensors
from harness.masks import check_fits, read_header

if TYPE_CHECKING:
    from torch import nn

FORMAT = "harness.checkpoint/1"
_METADATA_KEY = "harness"


@dataclass(frozen=True)
class Checkpoint:
    """[θ, buffers] after `epochs` epochs in all, at pruning level `level`; the mask lives in its own file."""

    params: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    level: int
    epochs: int
    level_digest: str

    @classmethod
    def of(cls, model: nn.Module, *, level: int, epochs: int, level_digest: str) -> Checkpoint:
        """Copy a model's state to the CPU; −0.0 becomes +0.0, since equal values must be equal bytes."""
        params = {name: param.detach().cpu().clone() + 0.0 for name, param in model.named_parameters()}
        buffers = {name: buffer.detach().cpu().clone() for name, buffer in model.named_buffers()}
        return cls(params, buffers, level, epochs, level_digest)

    @property
    def state_dict(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers together, ready for `load_state_dict`."""
        return self.params | self.buffers

    @property
    def digest(self) -> str:
        """SHA-256 over all tensors; equal for equal bits."""
        return sha256_tensors(self.state_dict)

    @torch.no_grad()
    def load_into_(self, model: nn.Module) -> None:
        """Copy into `model` in place; ValueError names every tensor that does not fit."""
        own = dict(model.named_parameters()) | dict(model.named_buffers())
        state = self.state_dict
        check_fits(_shapes(state), _shapes(own), "the checkpoint")
        check_fits(_shapes(own), _shapes(state), "the network")
        for name, tensor in state.items():
            own[name].copy_(tensor)

    def save(self, path: Path | str) -> None:
        """Write the file; equal checkpoints are equal bytes."""
        header = {
            "format": FORMAT,
            "level": self.level,
            "epochs": self.epochs,
            "level_digest": self.level_digest,
            "params": sorted(self.params),
        }
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict.items()}
        save_file(tensors, os.fspath(path), {_METADATA_KEY: canonical_json(header)})

    @classmethod
    def load(cls, path: Path | str) -> Checkpoint:
        """Read a file of `save`; a truncated, altered or foreign one is a ValueError naming it."""
        try:
            with safe_open(os.fspath(path), "pt") as file:
                header = read_header(file.metadata(), FORMAT, path)
                names = set(header["params"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            params = {name: tensors.pop(name) for name in list(tensors) if name in names}
            return cls(params, tensors, header["level"], header["epochs"], header["level_digest"])
        except FileNotFoundError:
            raise FileNotFoundError(f"no checkpoint at {path}") from None
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a whole checkpoint file ({error}); fetch it again") from error


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
