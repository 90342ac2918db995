"""Masks and signed masks of networks.

A Mask holds the kept weights. A SignedMask also holds the signs. Both operate on named tensors. Reading their file
format needs no model. A mask covers only the prunable tensors. A signed mask holds the sign of every parameter, and the
mask (paper, section 3.2: s = sign₀(θ ⊙ m)).
"""

from __future__ import annotations

import logging
import math
import os
import weakref
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors import safe_open

from harness.common.digest import canonical_json, sha256_json, sha256_tensors
from harness.common.files import write_tensors
from harness.common.tensors import METADATA_KEY, check_beside, check_fits, named_as, read_header, reading

if TYPE_CHECKING:
    from torch import nn

_log = logging.getLogger(__name__)

FORMAT = "harness.signed_mask/2"
"""Version 2 has a digest of its contents in the header. Its planes are those of version 1."""
_FORMAT_1 = "harness.signed_mask/1"


@dataclass(frozen=True)
class Mask:
    """The mask m: one bool tensor per prunable parameter, of equal shape.

    Example:
        >>> mask = harness.Mask({"conv.weight": torch.tensor([True, False])})
        >>> params = {"conv.weight": torch.tensor([2.0, 3.0])}
        >>> mask.apply_(params)
        >>> mask.density, params["conv.weight"]
        (0.5, tensor([2., 0.]))
    """

    tensors: dict[str, torch.Tensor]

    @classmethod
    def dense(cls, params: Mapping[str, torch.Tensor], prunable: Iterable[str]) -> Mask:
        """Return m₀ = 1 over the prunable parameters."""
        return cls({name: torch.ones_like(params[name], dtype=torch.bool) for name in sorted(prunable)})

    @property
    def numel(self) -> int:
        """Return the number of prunable weights."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def num_remaining(self) -> int:
        """Return the number of kept weights."""
        return sum(int(tensor.sum()) for tensor in self.tensors.values())

    @property
    def density(self) -> float:
        """Return the kept share of the prunable weights, 0..1."""
        return self.num_remaining / max(self.numel, 1)

    def issubset(self, other: Mask) -> bool:
        """Return whether `other` keeps every weight that this mask keeps.

        False if the two cover different tensors.
        """
        return self.shapes() == other.shapes() and all(
            not bool((tensor & ~other.tensors[name]).any()) for name, tensor in self.tensors.items()
        )

    def equal(self, other: Mask) -> bool:
        """Return whether both masks keep exactly the same weights."""
        return self.issubset(other) and other.issubset(self)

    def shapes(self) -> dict[str, torch.Size]:
        """Return the shape of each masked tensor."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @torch.no_grad()
    def apply_(self, params: Mapping[str, torch.Tensor]) -> None:
        """Set pruned weights to +0.0 in place.

        Raises:
            ValueError: A tensor is missing or has another shape.
        """
        check_fits(self.shapes(), {name: param.shape for name, param in params.items()}, "the mask")
        for name, kept in self.tensors.items():
            params[name].masked_fill_(~kept.to(params[name].device), 0.0)


@dataclass(frozen=True)
class SignedMask:
    """The signed mask s = sign₀(θ ⊙ m), together with m.

    s is int8 in {−1, 0, +1} for every parameter. `norm` names the norm parameters ψ. Their signs are recorded, but
    applying the signed mask changes ψ only on request (method: "touches φ only").

    Example:
        >>> theta = {"conv.weight": torch.tensor([2.0, -3.0, 4.0])}
        >>> mask = harness.Mask({"conv.weight": torch.tensor([True, True, False])})
        >>> signed = harness.SignedMask.of(theta, mask)
        >>> signed.signed({"conv.weight": torch.tensor([-0.1, 0.2, 0.3])})["conv.weight"]
        tensor([ 0.1000, -0.2000,  0.0000])
    """

    signs: dict[str, torch.Tensor]
    mask: Mask
    norm: frozenset[str] = frozenset()
    metadata: dict[str, Any] = field(default_factory=dict, compare=False)
    _bound: dict[str, weakref.ref[nn.Parameter]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, params: Mapping[str, torch.Tensor], mask: Mask, norm: Iterable[str] = ()) -> SignedMask:
        """Return sign₀(θ ⊙ m) for all parameters.

        Args:
            params: θ by parameter name.
            mask: m.
            norm: Names of the norm parameters.

        Raises:
            ValueError: The mask does not fit the parameters.
        """
        check_fits(mask.shapes(), {name: param.shape for name, param in params.items()}, "the mask")
        mask = Mask({name: kept.cpu() for name, kept in mask.tensors.items()})
        signs = {name: param.detach().cpu().sign().to(torch.int8) for name, param in params.items()}
        for name, kept in mask.tensors.items():
            signs[name] = signs[name] * kept
        return cls(signs, mask, frozenset(norm))

    @property
    def density(self) -> float:
        """Return the kept share of the prunable weights, 0..1."""
        return self.mask.density

    @property
    def num_zero_signs(self) -> int:
        """Return how many kept parameters are exactly zero, without a sign."""
        zeros = sum(int((sign == 0).sum()) for sign in self.signs.values())
        return zeros - (self.mask.numel - self.mask.num_remaining)

    @torch.no_grad()
    def signed(
        self, params: Mapping[str, torch.Tensor], *, norm: bool = False, unpruned: bool | Collection[str] = True
    ) -> dict[str, torch.Tensor]:
        """Return abs(θ) ⊙ s as new tensors.

        Pruned weights become +0.0. Kept parameters with sign 0 keep their value.

        Args:
            params: θ by parameter name.
            norm: Whether norm parameters get their signs too. By default they keep their values.
            unpruned: Whether other parameters outside the mask (biases, the classifier) get their signs, or the names
                of those that do.

        Raises:
            ValueError: The signed mask does not fit the parameters.
        """
        check_fits(
            {name: sign.shape for name, sign in self.signs.items()},
            {name: param.shape for name, param in params.items()},
            "the signed mask",
        )
        # Sign a copy of each selected parameter.
        result = {name: param.detach().clone() for name, param in params.items()}
        for name, sign in self.signs.items():
            if name not in self.mask.tensors and not (norm if name in self.norm else _names(unpruned, name)):
                continue
            value, sign = result[name], sign.to(result[name].device)
            # + 0.0 turns the −0.0 of abs(0)·(−1) into +0.0, so that equal values have equal bytes.
            signed = torch.where(sign == 0, value, value.abs() * sign) + 0.0
            if name in self.mask.tensors:
                signed = signed.masked_fill(~self.mask.tensors[name].to(value.device), 0.0)
            result[name] = signed
        return result

    @torch.no_grad()
    def apply_(self, model: nn.Module, *, norm: bool = False, unpruned: bool | Collection[str] = True) -> SignedMask:
        """Set the model's parameters to abs(θ) ⊙ s in place. Returns self.

        The model may be wrapped by DDP, DataParallel or torch.compile. See `signed` for the arguments.
        """
        params = named_as(self.signs, model)
        for name, value in self.signed(params, norm=norm, unpruned=unpruned).items():
            params[name].copy_(value)
        self._bound.clear()
        bound = {name: cast("nn.Parameter", params[name]) for name in self.mask.tensors}
        self._bound.update({name: weakref.ref(param) for name, param in bound.items()})
        return self

    def keep(self, optimizer: torch.optim.Optimizer) -> torch.utils.hooks.RemovableHandle:
        """Apply θ ← θ ⊙ m after each step of `optimizer`.

        This keeps the model of the last `apply_` sparse. Signs can still flip during training. The optimizer may be
        prepared by Accelerate before or afterwards.

        Returns:
            A handle. Remove it to stop.

        Raises:
            TypeError: The argument is not an optimizer.
            ValueError: `apply_` was not called, or the optimizer holds no weight of that model.
        """
        optimizer = hooked_optimizer(optimizer, "mask.keep")
        # Find the masked weights that the optimizer updates.
        owned = {id(param) for group in optimizer.param_groups for param in group["params"]}
        bound = [(name, ref()) for name, ref in self._bound.items()]
        kept = [(param, self.mask.tensors[name]) for name, param in bound if param is not None and id(param) in owned]
        if not kept:
            raise ValueError(
                "the optimizer holds no parameter of the model this signed mask was applied to; "
                "call mask.apply_(model) first, then mask.keep(optimizer) with that model's optimizer"
            )
        # Convert the masks once. The hook then needs a single fused multiplication.
        params: list[torch.Tensor] = [param for param, _ in kept]
        masks = [mask.to(param.device, param.dtype) for param, mask in kept]

        def remask(*_: Any) -> None:
            for index, param in enumerate(params):  # prepare() or half() may have moved the parameters since
                if masks[index].device != param.device or masks[index].dtype != param.dtype:
                    masks[index] = kept[index][1].to(param.device, param.dtype)
            with torch.no_grad():
                torch._foreach_mul_(params, masks)

        return optimizer.register_step_post_hook(remask)

    def agreement(self, other: SignedMask) -> float:
        """Return the share of equal signs among commonly kept weights, 0..1.

        NaN if no weight is kept by both.
        """
        agree = common = 0
        for name in self.mask.tensors.keys() & other.mask.tensors.keys():
            both = self.mask.tensors[name] & other.mask.tensors[name]
            common += int(both.sum())
            agree += int(((self.signs[name] == other.signs[name]) & both).sum())
        return agree / common if common else float("nan")

    @property
    def digest(self) -> str:
        """Return the SHA-256 over signs, mask and the names of norm parameters.

        Equal signed masks have equal digests, whatever the format of their files.
        """
        kept = {f"{name}:kept": tensor for name, tensor in self.mask.tensors.items()}
        return sha256_json({"norm": sorted(self.norm), "tensors": sha256_tensors(self.signs | kept)})

    def save(self, path: Path | str, metadata: Mapping[str, Any] | None = None) -> None:
        """Write the packed file. Equal signed masks give equal bytes.

        The file holds one mask bit per prunable weight, and one sign bit per kept parameter. Its header has a digest of
        all its contents.

        Args:
            path: The file.
            metadata: Facts that the computation determines, such as level key, level and density. Never run IDs.
                None: the metadata of this object.
        """
        # Pack mask bits, sign bits, and positions of zeros.
        tensors: dict[str, torch.Tensor] = {}
        for name, sign in self.signs.items():
            flat = sign.reshape(-1).numpy()
            if name in self.mask.tensors:
                kept = self.mask.tensors[name].reshape(-1).numpy()
                tensors[f"{name}:kept"] = torch.from_numpy(np.packbits(kept))
                flat = flat[kept]
            tensors[f"{name}:sign"] = torch.from_numpy(np.packbits(flat > 0))
            if (zeros := np.flatnonzero(flat == 0)).size:
                tensors[f"{name}:zero"] = torch.from_numpy(zeros.astype(np.int64))
        said = {
            "norm": sorted(self.norm),
            "shapes": {name: list(sign.shape) for name, sign in self.signs.items()},
            "metadata": dict(self.metadata if metadata is None else metadata),
        }
        header = said | {"format": FORMAT, "sha256": sha256_json(said | {"planes": sha256_tensors(tensors)})}
        # Use a single key: safetensors writes several in random order, so the bytes would differ.
        write_tensors(path, tensors, {METADATA_KEY: canonical_json(header)})

    @classmethod
    def load(cls, path: Path | str) -> SignedMask:
        """Read a signed mask that `save` wrote.

        The contents are checked against the digest in the header. A file in the directory of a run is also checked
        against the run's record. Files of version 1 have no digest in the header, which a log message notes once.

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: The file is truncated, altered or in another format. The message names the file.
        """
        recorded = check_beside(Path(path))
        with reading(path, "signed-mask file"):
            with safe_open(os.fspath(path), "pt") as file:
                header = read_header(file.metadata(), FORMAT, path, _FORMAT_1)
                packed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            older = header["format"] == _FORMAT_1
            said = {name: header[name] for name in ("norm", "shapes", "metadata")}
            digest = None if older else sha256_json(said | {"planes": sha256_tensors(packed)})
            if header.get("sha256") != digest:
                raise ValueError(f"{path} was altered: its contents do not have the digest in its header")
            found = cls._unpack(header, packed)
        if older and not recorded:
            _note_format_1(path)
        return found

    @classmethod
    def _unpack(cls, header: dict[str, Any], packed: dict[str, torch.Tensor]) -> SignedMask:
        """Return the signed mask of a file; ValueError for contents that `save` does not write."""
        signs, kept_sets, left = {}, {}, set(packed)
        for name, shape in header["shapes"].items():
            numel = math.prod(shape)
            kept = None
            if f"{name}:kept" in packed:
                kept = _unpack_bits(packed[f"{name}:kept"], numel)
                kept_sets[name] = torch.from_numpy(kept.reshape(shape))
            count = numel if kept is None else int(kept.sum())
            values = _unpack_bits(packed[f"{name}:sign"], count).astype(np.int8) * np.int8(2) - np.int8(1)
            if f"{name}:zero" in packed:
                positions = packed[f"{name}:zero"].numpy()
                if positions.min(initial=0) < 0 or (np.diff(positions) <= 0).any() or (values[positions] > 0).any():
                    raise ValueError(f"the zeros of {name} are altered")
                values[positions] = 0
            if kept is not None:
                spread = np.zeros(numel, dtype=np.int8)
                spread[kept] = values
                values = spread
            signs[name] = torch.from_numpy(values.reshape(shape))
            left -= {f"{name}:{plane}" for plane in ("kept", "sign", "zero")}
        if left:
            raise ValueError(f"unknown planes {sorted(left)[:3]}")
        return cls(signs, Mask(kept_sets), frozenset(header["norm"]), dict(header["metadata"]))


def hooked_optimizer(optimizer: Any, taker: str) -> torch.optim.Optimizer:
    """Return the optimizer whose step hooks run: the given one, or the one that it wraps.

    Args:
        optimizer: An optimizer of torch, or a wrapper such as Accelerate's.
        taker: The caller's name, for the message.

    Raises:
        TypeError: The argument is not an optimizer.
    """
    # Unwrap: a wrapper such as AcceleratedOptimizer has no hooks of its own. It calls the inner optimizer's step.
    # A wrapper with hooks, such as Lookahead, may change parameters after the inner step, so it keeps the hook.
    while not hasattr(optimizer, "_optimizer_step_post_hooks") and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"{taker} takes an optimizer of torch or one that wraps it, got {type(optimizer)}")
    return optimizer


def same_contents(a: Path | str, b: Path | str) -> bool:
    """Return whether two files hold the same signed mask, be they of format 1 or 2. Metadata are not compared."""
    return SignedMask.load(a).digest == SignedMask.load(b).digest


_noted_format_1 = False


def _note_format_1(path: Path | str) -> None:
    """Say once that a file without digest cannot be checked."""
    global _noted_format_1
    if not _noted_format_1:
        _noted_format_1 = True
        _log.info(
            f"note: {path} has format {_FORMAT_1}, without a digest of its contents: an altered file of this format "
            "may go unnoticed. Its run's ID checks it, and `save` writes format 2"
        )


def _names(unpruned: bool | Collection[str], name: str) -> bool:
    return unpruned if isinstance(unpruned, bool) else name in unpruned


def _unpack_bits(packed: torch.Tensor, count: int) -> np.ndarray:
    if packed.ndim != 1 or packed.dtype != torch.uint8 or packed.numel() != (count + 7) // 8:
        raise ValueError(f"{packed.dtype} {tuple(packed.shape)} of packed bits for {count} values")
    bits = np.unpackbits(packed.numpy())
    if bits[count:].any():
        raise ValueError(f"bits after the {count} values")
    return bits[:count].astype(bool)
