"""Read and write checkpoints, and take over networks from other code.

A checkpoint is a safetensors file with the keys of a plain state dict. `safetensors.torch.load_file` and
`load_state_dict` read it without this harness. `harness.common.foreign` reads files from other code.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

from harness.common.digest import canonical_json, sha256_tensors
from harness.common.files import write_tensors
from harness.common.foreign import read_tensors
from harness.common.tensors import (
    METADATA_KEY,
    below,
    check_beside,
    check_fits,
    listed,
    named_as,
    read_header,
    reading,
    stored_instead,
)

if TYPE_CHECKING:
    from torch import nn

FORMAT = "harness.checkpoint/1"


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
        """Copy this checkpoint into `model` in place. The model may be wrapped, e.g. by DDP.

        Raises:
            ValueError: Tensors are missing or have another shape. The message names them.
        """
        state = self.state_dict
        own: dict[str, torch.Tensor] = dict(model.named_parameters()) | dict(model.named_buffers())
        if own.keys() != state.keys():  # the model may be wrapped
            own = named_as(state, model, buffers=True)
        shapes, own_shapes = ({name: tensor.shape for name, tensor in one.items()} for one in (state, own))
        check_fits(shapes, own_shapes, "the checkpoint", exactly=True)
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
        with reading(path, "checkpoint file"):
            with safe_open(os.fspath(path), "pt") as file:
                header = read_header(file.metadata(), FORMAT, path)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            # Check the header before it is used: an altered one can hold anything.
            names, level, epochs, digest = (header[name] for name in ("params", "level", "epochs", "level_digest"))
            if not isinstance(names, list) or {type(level), type(epochs)} != {int} or not isinstance(digest, str):
                raise ValueError("its header has values of other types")
            if absent := [name for name in names if name not in tensors]:
                raise ValueError(f"it lacks {len(absent)} of its parameters")
            params = {name: tensors[name] for name in list(tensors) if name in set(names)}
            buffers = {name: tensor for name, tensor in tensors.items() if name not in params}
        return cls(params, buffers, level, epochs, digest)


@dataclass(frozen=True)
class Pretrained:
    """Tensors of a trained network, with the names of its state dict."""

    tensors: dict[str, torch.Tensor]

    @property
    def digest(self) -> str:
        """Return the SHA-256 over all tensors."""
        return sha256_tensors(self.tensors)

    def fitted(
        self, fresh: Checkpoint, classifier: str | Sequence[str], unsaved: Collection[str] = ()
    ) -> tuple[Checkpoint, list[str]]:
        """Fill a copy of a fresh network with these tensors.

        If the file's classifier is missing or has other shapes, the whole classifier stays fresh. BatchNorm's
        `num_batches_tracked` counters stay fresh if the file lacks them, as files of old torch versions do.

        Args:
            fresh: The freshly initialised network.
            classifier: Dotted name of the classifier's module, or the names of several.
            unsaved: Buffers that are no part of the network's state dict. They stay fresh if the file lacks them.

        Returns:
            The filled copy, and the names of the tensors that stayed fresh, without `unsaved`.

        Raises:
            ValueError: Any other tensor is missing, unknown, not finite, or has another shape or kind of values. The
                message names it.
        """
        # Choose the tensors that stay fresh.
        own = fresh.state_dict
        inside = below(classifier)
        head = [name for name in own if name.startswith(inside)]
        same_head = all(name in self.tensors and self.tensors[name].shape == own[name].shape for name in head)
        same_head |= any(stored_instead(name, self.tensors) for name in head)  # a pruned one does not stay fresh
        kept_fresh = [] if same_head else head
        kept_fresh += [name for name in own if name.endswith("num_batches_tracked") and name not in self.tensors]
        stays = {*kept_fresh, *(name for name in unsaved if name not in self.tensors)}
        # Check the remaining tensors in both directions.
        given = {
            name: tensor.shape for name, tensor in self.tensors.items() if not name.startswith(inside) or same_head
        }
        needed = {name: tensor.shape for name, tensor in own.items() if name not in stays}
        check_fits(given, needed, "the file", exactly=True)

        def taken(name: str, value: torch.Tensor) -> torch.Tensor:
            return value if name in stays else self.tensors[name].to(value.dtype).clone() + 0  # −0.0 → +0.0

        # Check the values: a conversion from integers or complex numbers would change them silently.
        kinds = [
            f"{name} is {str(self.tensors[name].dtype).removeprefix('torch.')}"
            for name in needed
            if own[name].is_floating_point() and not self.tensors[name].is_floating_point()
        ]
        if kinds:
            raise ValueError(f"the file does not fit the network: {listed(kinds)}; floating-point tensors are expected")
        # Fill a copy of the fresh network.
        params = {name: taken(name, value) for name, value in fresh.params.items()}
        buffers = {name: taken(name, value) for name, value in fresh.buffers.items()}
        if broken := [name for name, value in (params | buffers).items() if not bool(torch.isfinite(value).all())]:
            raise ValueError(f"the file has NaN or infinite values in {listed(broken)}: the network is not usable")
        return Checkpoint(params, buffers, fresh.level, fresh.epochs, fresh.level_digest), kept_fresh


def read_network(path: Path) -> Pretrained:
    """Read the tensors of a .safetensors or torch file.

    A file in the directory of a run is checked against the run's record. See `harness.common.foreign` for the forms.

    Raises:
        ValueError: The file is damaged, or a torch file holds more than tensors.
    """
    check_beside(path)
    return Pretrained(read_tensors(path))
