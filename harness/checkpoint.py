"""Read and write checkpoints, and read networks from other code.

A checkpoint is a safetensors file with the keys of a plain state dict. `safetensors.torch.load_file` and
`load_state_dict` read it without this harness. Networks from other code are safetensors files, or torch files (.pth,
.pt) that hold only tensors. Pickled code is never executed.
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
from safetensors.torch import load_file

from harness.common.digest import canonical_json, sha256_tensors
from harness.common.files import write_tensors
from harness.common.tensors import METADATA_KEY, check_fits, read_header

if TYPE_CHECKING:
    from torch import nn

FORMAT = "harness.checkpoint/1"
_WRAPPERS = ("module.", "_orig_mod.")  # name prefixes that DDP and torch.compile add
_INSIDE = ("state_dict", "model_state_dict", "model")  # keys under which a file may nest its state dict


@dataclass(frozen=True)
class Checkpoint:
    """Parameters θ and buffers after `epochs` epochs in total, at level `level`.

    The mask is stored in a file of its own.
    """

    params: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    level: int
    epochs: int
    level_digest: str

    @classmethod
    def of(cls, model: nn.Module, *, level: int, epochs: int, level_digest: str) -> Checkpoint:
        """Copy a model's state to the CPU.

        −0.0 in a parameter becomes +0.0, so that equal values have equal bytes.
        """
        params = {name: param.detach().cpu().clone() + 0.0 for name, param in model.named_parameters()}
        buffers = {name: buffer.detach().cpu().clone() for name, buffer in model.named_buffers()}
        return cls(params, buffers, level, epochs, level_digest)

    @property
    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return parameters and buffers together, ready for `load_state_dict`."""
        return self.params | self.buffers

    @property
    def digest(self) -> str:
        """Return the SHA-256 over all tensors. Equal bits give equal digests."""
        return sha256_tensors(self.state_dict)

    @torch.no_grad()
    def load_into_(self, model: nn.Module) -> None:
        """Copy this checkpoint into `model` in place.

        Raises:
            ValueError: Tensors are missing or have another shape. The message names each of them.
        """
        own = dict(model.named_parameters()) | dict(model.named_buffers())
        state = self.state_dict
        shapes, own_shapes = ({name: tensor.shape for name, tensor in one.items()} for one in (state, own))
        check_fits(shapes, own_shapes, "the checkpoint")
        check_fits(own_shapes, shapes, "the network", "the checkpoint")
        for name, tensor in state.items():
            own[name].copy_(tensor)

    def save(self, path: Path | str) -> None:
        """Write the checkpoint file. Equal checkpoints give equal bytes."""
        header = {
            "format": FORMAT,
            "level": self.level,
            "epochs": self.epochs,
            "level_digest": self.level_digest,
            "params": sorted(self.params),
        }
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict.items()}
        write_tensors(path, tensors, {METADATA_KEY: canonical_json(header)})

    @classmethod
    def load(cls, path: Path | str) -> Checkpoint:
        """Read a checkpoint that `save` wrote.

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: The file is truncated, altered or in another format. The message names the file.
        """
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
            raise ValueError(f"{path} is not a complete checkpoint file ({error}); download it again") from error


@dataclass(frozen=True)
class Pretrained:
    """Tensors of a trained network, with the names of its state dict."""

    tensors: dict[str, torch.Tensor]

    @property
    def digest(self) -> str:
        """Return the SHA-256 over all tensors."""
        return sha256_tensors(self.tensors)

    def fitted(self, fresh: Checkpoint, classifier: str) -> tuple[Checkpoint, list[str]]:
        """Fill a copy of a fresh network with these tensors.

        If the file's classifier is missing or has other shapes, the whole classifier stays fresh. BatchNorm's
        `num_batches_tracked` counters stay fresh if the file lacks them, as files of old torch versions do.

        Args:
            fresh: The freshly initialised network.
            classifier: Dotted name of the classifier's module.

        Returns:
            The filled copy, and the names of the tensors that stayed fresh.

        Raises:
            ValueError: Any other tensor is missing, unknown or has another shape. The message names it.
        """
        # Choose the tensors that stay fresh.
        own = fresh.state_dict
        head = [name for name in own if name.startswith(f"{classifier}.")]
        same_head = all(name in self.tensors and self.tensors[name].shape == own[name].shape for name in head)
        kept_fresh = [] if same_head else head
        kept_fresh += [name for name in own if name.endswith("num_batches_tracked") and name not in self.tensors]
        # Check the remaining tensors in both directions.
        needed = {name: tensor.shape for name, tensor in own.items() if name not in kept_fresh}
        check_fits(needed, {name: tensor.shape for name, tensor in self.tensors.items()}, "the network", "the file")
        given = {name: t.shape for name, t in self.tensors.items() if not name.startswith(f"{classifier}.")}
        check_fits(given, {name: tensor.shape for name, tensor in own.items()}, "the file")

        def taken(name: str, value: torch.Tensor) -> torch.Tensor:
            return value if name in kept_fresh else self.tensors[name].to(value.dtype).clone() + 0  # −0.0 → +0.0

        # Fill a copy of the fresh network.
        params = {name: taken(name, value) for name, value in fresh.params.items()}
        buffers = {name: taken(name, value) for name, value in fresh.buffers.items()}
        return Checkpoint(params, buffers, fresh.level, fresh.epochs, fresh.level_digest), kept_fresh


def read_network(path: Path) -> Pretrained:
    """Read the tensors of a .safetensors or torch file.

    Removes the name prefixes that DDP and torch.compile add. The state dict of a torch file may be nested under
    `state_dict`, `model_state_dict` or `model`.

    Raises:
        ValueError: The file is damaged, or a torch file holds more than tensors.
    """
    # safetensors files cannot hold anything but tensors.
    if path.suffix == ".safetensors":
        try:
            return Pretrained(_plain(load_file(path)))
        except SafetensorError as error:
            raise ValueError(f"{path} is not a complete safetensors file ({error}); download it again") from error
    try:
        # In torch files, `weights_only` refuses every other pickled object.
        found = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(
            f"{path} is truncated or holds more than tensors; it is not loaded, because a pickle can run any code. "
            "Save its state_dict alone, preferably with safetensors.torch.save_file"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as a torch file ({error}); download it again") from error
    # Unwrap a nested state dict.
    for name in _INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ValueError(f"{path} holds no state dict: expected named tensors, got {type(found).__name__}")
    return Pretrained(_plain(found))


def _plain(tensors: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    plain = {}
    for name, tensor in tensors.items():
        for prefix in _WRAPPERS:
            name = name.removeprefix(prefix)
        plain[name] = tensor
    return plain
