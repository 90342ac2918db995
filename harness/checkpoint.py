"""Read and write checkpoints, and take over networks from other code.

A checkpoint is a safetensors file with the keys of a plain state dict. `safetensors.torch.load_file` and
`load_state_dict` read it without this harness. `harness.common.foreign` reads files from other code.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import safe_open

from harness.common.digest import canonical_json, sha256_tensors
from harness.common.files import write_tensors
from harness.common.foreign import read_tensors, split_key
from harness.common.matching import COUNTER, match_names
from harness.common.shown import count, few_shapes
from harness.common.tensors import (
    METADATA_KEY,
    check_beside,
    check_fits,
    check_values,
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
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Further names of shared tensors in the network's state dict, with the names here. Not saved to the file."""

    @classmethod
    def of(cls, model: nn.Module, *, level: int, epochs: int, level_digest: str) -> Checkpoint:
        """Copy a model's state to the CPU.

        −0.0 in a parameter becomes +0.0, so that equal values have equal bytes.
        """
        params = {name: param.detach().cpu().clone() + 0.0 for name, param in model.named_parameters()}
        buffers = {name: buffer.detach().cpu().clone() for name, buffer in model.named_buffers()}
        # Files from other code can have the other names of shared tensors.
        state = model.state_dict(keep_vars=True)
        names = {id(tensor): name for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
        aliases = {name: names[id(tensor)] for name, tensor in state.items() if names.get(id(tensor), name) != name}
        return cls(params, buffers, level, epochs, level_digest, aliases)

    def __repr__(self) -> str:
        """Return three lines: counts, the first tensors, and the run."""
        sizes = [sum(tensor.numel() for tensor in held.values()) for held in (self.params, self.buffers)]
        run = f"key {self.level_digest:.12}…" if self.level_digest else "of no recorded run"
        return (
            f"Checkpoint: level {self.level}, {count(self.epochs, 'epoch')}, {count(sizes[0], 'parameter')} in "
            f"{count(len(self.params), 'tensor')}, {count(sizes[1], 'value')} in {count(len(self.buffers), 'buffer')}\n"
            f"  {few_shapes(self.params)}\n  {run}"
        )

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
            ValueError: Tensors are missing or have another shape, or `model` has no values. The message names them.
        """
        state = self.state_dict
        own: dict[str, torch.Tensor] = dict(model.named_parameters()) | dict(model.named_buffers())
        if own.keys() != state.keys():  # the model may be wrapped
            own = named_as(state, model, buffers=True)
        check_values(own, "load the checkpoint")
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

    def __repr__(self) -> str:
        return f"Pretrained: {count(len(self.tensors), 'tensor')}: {few_shapes(self.tensors)}"

    @property
    def digest(self) -> str:
        """Return the SHA-256 over all tensors."""
        return sha256_tensors(self.tensors)

    def fitted(self, fresh: Checkpoint, classifier: str | Sequence[str], unsaved: Collection[str] = ()) -> Fitted:
        """Fill a copy of a fresh network with these tensors.

        `harness.common.matching` tells how names are matched. If the file's classifier is missing or has other shapes,
        the whole classifier stays fresh. BatchNorm's `num_batches_tracked` counters stay fresh if the file lacks them,
        as files of old torch versions do.

        Args:
            fresh: The freshly initialised network.
            classifier: Dotted name of the classifier's module, or the names of several.
            unsaved: Buffers that are no part of the network's state dict. They stay fresh if the file lacks them.

        Raises:
            ValueError: Any other tensor is missing, unknown, not finite, or has another shape or kind of values. The
                message names it.
        """
        # Phase: match the names.
        own = fresh.state_dict
        heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        named = {name: value for name, value in own.items() if name not in unsaved}
        matched = match_names(self.tensors, named, heads, fresh.aliases)
        held, what = matched.tensors, matched.what

        if empty := [name for name, tensor in held.items() if name in own and tensor.numel() == 0 < own[name].numel()]:
            raise ValueError(
                f"{what} has no values of {listed(empty)} ({len(empty)} of {len(held)}): DeepSpeed ZeRO-3 leaves them "
                "in other files; gather them with `python zero_to_fp32.py . network` in its directory"
            )

        # Phase: choose the tensors that stay fresh.
        ends = tuple(f"{head}." for head in heads)
        head = [name for name in own if name.startswith(ends)]
        other = [name for name in head if name not in held or held[name].shape != own[name].shape]
        if any(stored_instead(name, held) for name in head):  # a reparametrised one does not stay fresh
            other = []
        counters = [name for name in own if name.endswith(COUNTER) and name not in held]
        kept_fresh = (head if other else []) + counters
        stays = {*kept_fresh, *(name for name in unsaved if name not in held)}
        notes = [*matched.notes, *self._fresh_notes(other, head, counters, held, own)]

        # Phase: check the remaining tensors in both directions.
        given = {name: tensor.shape for name, tensor in held.items() if not (other and name.startswith(ends))}
        needed = {name: tensor.shape for name, tensor in own.items() if name not in stays}
        if given.keys() - own.keys() and not any(name in held for name in head):
            # The file may have the classifier under other names. The error shows both.
            needed |= {name: own[name].shape for name in head}
        check_fits(given, needed, what, exactly=True)

        def taken(name: str, value: torch.Tensor) -> torch.Tensor:
            if name in stays:
                return value
            try:
                return held[name].to(value.dtype).clone() + 0  # −0.0 → +0.0
            except (RuntimeError, NotImplementedError, TypeError) as error:
                kind = _short(held[name])
                raise ValueError(f"{what} does not fit the network: torch cannot convert {name} from {kind}") from error

        # Phase: check the values. A conversion from integers or complex numbers would change them silently.
        kinds = [
            f"{name} is {_short(held[name])}"
            for name in needed
            if own[name].is_floating_point() and not held[name].is_floating_point()
        ]
        if kinds:
            raise ValueError(f"{what} does not fit the network: {listed(kinds)}; floating-point tensors are expected")

        # Phase: fill a copy of the fresh network.
        params = {name: taken(name, value) for name, value in fresh.params.items()}
        buffers = {name: taken(name, value) for name, value in fresh.buffers.items()}
        if broken := [name for name, value in (params | buffers).items() if not bool(torch.isfinite(value).all())]:
            raise ValueError(f"{what} has NaN or infinite values in {listed(broken)}: the network is not usable")
        filled = replace(fresh, params=params, buffers=buffers)
        return Fitted(filled, kept_fresh, notes, pruned=matched.pruned > 0)

    @staticmethod
    def _fresh_notes(
        other: list[str],
        head: list[str],
        counters: list[str],
        held: Mapping[str, torch.Tensor],
        own: Mapping[str, torch.Tensor],
    ) -> Iterator[str]:
        """Yield why the classifier is drawn anew, and which counters are.

        Args:
            other: Tensors of the classifier that do not fit. If there are any, all of `head` are drawn.
            head: All tensors of the classifier.
            counters: BatchNorm's counters that the file lacks.
            held: The tensors of the file.
            own: The tensors of the network.
        """
        if other:
            first, shape = other[0], tuple(own[other[0]].shape)
            why = f"it is {tuple(held[first].shape)} in the file" if first in held else "the file has none"
            yield f"the classifier ({listed(head)}) is drawn anew: {first} is {shape} in the network, {why}"
        if counters:
            yield f"{listed(counters)} start at 0: the file has no such counters"


class Fitted(NamedTuple):
    """A network that was filled with the tensors of a file."""

    checkpoint: Checkpoint
    fresh: list[str]
    """Names of the tensors that stayed fresh, without `unsaved`."""
    notes: list[str]
    """Sentences about tensors that were renamed, left out, multiplied or drawn anew."""
    pruned: bool
    """Whether masks of torch.nn.utils.prune were applied."""


def _short(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def read_network(text: Path | str) -> Pretrained:
    """Read the tensors of a file, of an index of several files, or of a directory.

    A file in the directory of a run is checked against the run's record. See `harness.common.foreign` for the forms.

    Args:
        text: The file or directory. `FILE:KEY` takes only what the file has under KEY.

    Raises:
        FileNotFoundError: The file does not exist, or the directory has no network.
        OSError: The file cannot be opened.
        ValueError: The file is damaged, or a torch file holds more than tensors.
    """
    path, key = split_key(text)
    check_beside(path)
    return Pretrained(read_tensors(path, key))
