"""Networks as files: our checkpoints, and networks that were trained elsewhere.

A checkpoint is a safetensors file with the plain keys of a state dict: stock `safetensors.torch.load_file` and
`load_state_dict` read it. Foreign networks are safetensors, or torch files (.pth, .pt) of tensors alone. No pickle is
ever executed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from harness.common.digest import canonical_json, sha256_tensors
from harness.common.tensors import METADATA_KEY, check_fits, read_header

if TYPE_CHECKING:
    from torch import nn

FORMAT = "harness.checkpoint/1"
_WRAPPERS = ("module.", "_orig_mod.")  # of DDP and torch.compile
_INSIDE = ("state_dict", "model_state_dict", "model")


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
        shapes, own_shapes = ({name: tensor.shape for name, tensor in one.items()} for one in (state, own))
        check_fits(shapes, own_shapes, "the checkpoint")
        check_fits(own_shapes, shapes, "the network")
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
        save_file(tensors, os.fspath(path), {METADATA_KEY: canonical_json(header)})

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


@dataclass(frozen=True)
class Pretrained:
    """The tensors of a trained network, by the names of its state dict."""

    tensors: dict[str, torch.Tensor]

    @property
    def digest(self) -> str:
        """SHA-256 over all tensors."""
        return sha256_tensors(self.tensors)

    def fitted(self, fresh: Checkpoint, classifier: str) -> tuple[Checkpoint, list[str]]:
        """Return `fresh` with these tensors in it, and the names of those that stay fresh.

        A classifier (parameters of the module `classifier`) of another number of classes stays fresh as a whole, and
        so do counters of BatchNorm's batches that older files lack. Any other tensor that is missing, or does not fit,
        is a ValueError that names it.
        """
        own = fresh.state_dict
        head = [name for name in own if name.startswith(f"{classifier}.")]
        same_head = all(name in self.tensors and self.tensors[name].shape == own[name].shape for name in head)
        kept_fresh = [] if same_head else head
        kept_fresh += [name for name in own if name.endswith("num_batches_tracked") and name not in self.tensors]
        needed = {name: tensor.shape for name, tensor in own.items() if name not in kept_fresh}
        check_fits(needed, {name: tensor.shape for name, tensor in self.tensors.items()}, "the network")
        given = {name: t.shape for name, t in self.tensors.items() if not name.startswith(f"{classifier}.")}
        check_fits(given, {name: tensor.shape for name, tensor in own.items()}, "the file")

        def taken(name: str, value: torch.Tensor) -> torch.Tensor:
            return value if name in kept_fresh else self.tensors[name].to(value.dtype).clone() + 0

        params = {name: taken(name, value) for name, value in fresh.params.items()}
        buffers = {name: taken(name, value) for name, value in fresh.buffers.items()}
        return Checkpoint(params, buffers, fresh.level, fresh.epochs, fresh.level_digest), kept_fresh


def read_network(path: Path) -> Pretrained:
    """Read a .safetensors file, or a torch file of nothing but tensors (torchvision's are); else a ValueError.

    Prefixes that DDP and torch.compile leave are taken off; a state dict may lie inside, under `state_dict` or `model`.
    """
    if path.suffix == ".safetensors":
        try:
            return Pretrained(_plain(load_file(path)))
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file ({error}); fetch it again") from error
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, or is cut, and is not loaded (a pickle can run anything): save its "
            "state_dict alone, best with safetensors.torch.save_file"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as a torch file ({error}); fetch it again") from error
    for name in _INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ValueError(f"{path} holds no state dict: expected tensors by name, got {type(found).__name__}")
    return Pretrained(_plain(found))


def _plain(tensors: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    plain = {}
    for name, tensor in tensors.items():
        for prefix in _WRAPPERS:
            name = name.removeprefix(prefix)
        plain[name] = tensor
    return plain
