"""A network that was trained elsewhere: its tensors read from a file, and put into a network of ours.

Files are safetensors, or torch files (.pth, .pt) of tensors alone: nothing in them is executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from harness.checkpoint import Checkpoint
from harness.digest import sha256_tensors
from harness.masks import check_fits

_WRAPPERS = ("module.", "_orig_mod.")  # of DDP and torch.compile
_INSIDE = ("state_dict", "model_state_dict", "model")


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
