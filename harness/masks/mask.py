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
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors import safe_open

from harness.common.digest import canonical_json, sha256_json, sha256_tensors
from harness.common.escape import for_terminal
from harness.common.files import write_tensors
from harness.common.shown import count, few_names, few_shapes, short
from harness.common.tensors import (
    METADATA_KEY,
    check_beside,
    check_fits,
    check_values,
    listed,
    named_as,
    read_header,
    reading,
    renamed,
)
from harness.masks import formats
from harness.masks.keeping import KeptSparse, check_held, hooked_optimizer, remasking

if TYPE_CHECKING:
    from torch import nn

_log = logging.getLogger(__name__)

FORMAT = "harness.signed_mask/2"
"""Version 2 has a digest of its contents in the header. Its planes are those of version 1."""
_FORMAT_1 = "harness.signed_mask/1"


@dataclass(frozen=True, eq=False, repr=False)
class Mask:
    """The mask m: one bool tensor per prunable parameter, of equal shape.

    Two masks are equal if they keep the same weights of the same tensors. `mask[name]` is one tensor. Iteration yields
    the names.

    Example:
        >>> mask = harness.Mask({"conv.weight": torch.tensor([True, False])})
        >>> params = {"conv.weight": torch.tensor([2.0, 3.0])}
        >>> mask.apply_(params)
        >>> mask.density, params["conv.weight"]
        (0.5, tensor([2., 0.]))
        >>> mask
        Mask: 1 of 2 weights kept (density 0.500)
          1 tensor: conv.weight (2,)
          density by tensor: 0.500 (conv.weight)
    """

    tensors: dict[str, torch.Tensor]

    def __post_init__(self) -> None:
        if not isinstance(self.tensors, Mapping):
            raise TypeError(
                f"a mask takes bool tensors by name, such as a dictionary, not {type(self.tensors).__name__}"
            )
        for name, kept in self.tensors.items():
            kind = kept.dtype if isinstance(kept, torch.Tensor) else type(kept)
            if kind != torch.bool:
                raise ValueError(f"a mask has bool tensors, but {name} is {kind}; give tensor != 0")

    @classmethod
    def dense(cls, params: Mapping[str, torch.Tensor], prunable: Iterable[str]) -> Mask:
        """Return m₀ = 1 over the prunable parameters."""
        return cls({name: torch.ones_like(params[name], dtype=torch.bool) for name in sorted(prunable)})

    def __repr__(self) -> str:
        """Return three lines: counts, tensors, and the least and most dense tensor."""
        filled = {} if _without_values(self.tensors) else {n: kept for n, kept in self.tensors.items() if kept.numel()}
        dense = {name: float(kept.float().mean()) for name, kept in filled.items()}
        ends = dict.fromkeys((min(dense, key=dense.__getitem__), max(dense, key=dense.__getitem__))) if dense else {}
        share = " to ".join(f"{dense[name]:.3f} ({short(name)})" for name in ends) or "none"
        return (
            f"Mask: {_kept_of(self.tensors)}\n"
            f"  {count(len(self), 'tensor')}: {few_shapes(self.tensors)}\n"
            f"  density by tensor: {share}{_where(self.tensors)}"
        )

    def __eq__(self, other: object) -> bool:
        """Return whether both masks keep the same weights, on any devices."""
        return self.equal(other) if isinstance(other, Mask) else NotImplemented

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __bool__(self) -> bool:
        return True  # also without tensors, which `len` counts

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
            not bool((tensor & ~other.tensors[name].to(tensor.device)).any()) for name, tensor in self.tensors.items()
        )

    def equal(self, other: Mask) -> bool:
        """Return whether both masks keep exactly the same weights."""
        return self.issubset(other) and other.issubset(self)

    def shapes(self) -> dict[str, torch.Size]:
        """Return the shape of each masked tensor."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def to(self, device: torch.device | str) -> Mask:
        """Return this mask on a device. Masks on any device apply to networks on any device."""
        return Mask({name: kept.to(device) for name, kept in self.tensors.items()})

    @torch.no_grad()
    def apply_(self, params: Mapping[str, torch.Tensor] | nn.Module) -> None:
        """Set pruned weights to +0.0 in place.

        Args:
            params: Tensors by name, or a network. Prefixes of DDP, DataParallel and torch.compile are ignored.

        Raises:
            ValueError: A tensor is missing or has another shape.
        """
        if isinstance(params, torch.nn.Module):
            held = _params(self.tensors, params, "apply_")
        else:
            held = _by_names(self.tensors, params)
        check_fits(self.shapes(), {name: param.shape for name, param in held.items()}, "the mask")
        for name, kept in self.tensors.items():
            held[name].masked_fill_(~kept.to(held[name].device), 0.0)

    def to_dense(self, network: formats.Network | None = None, *, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        """Return the mask as dense tensors, or a network's state dict θ ⊙ m.

        Args:
            network: A network, its state dict or a checkpoint. It does not change. Names of wrappers are removed.
            dtype: Type of the result without a network.

        Returns:
            Without a network: ones and zeros by name, in the shape of the parameters. With a network: copies of its
            whole state dict, where pruned weights are +0.0.

        Raises:
            ValueError: The mask does not fit the network.

        Example:
            >>> mask = harness.Mask({"weight": torch.tensor([[True, False]])})
            >>> mask.to_dense(), mask.to_dense({"weight": torch.tensor([[2.0, 3.0]])})
            ({'weight': tensor([[1., 0.]])}, {'weight': tensor([[2., 0.]])})
        """
        if network is None:
            return {name: kept.to(dtype) for name, kept in self.tensors.items()}
        return formats.to_dense(self.tensors, network)

    def to_torch_prune(self, network: formats.Network) -> dict[str, Any]:
        """Return the state dict of this network as torch.nn.utils.prune stores it.

        Each masked `X` becomes `X_orig`, which is θ ⊙ m, and `X_mask` of ones and zeros. Both have its shape and type.
        A network whose masked parameters torch.nn.utils.prune has prepared loads it. `prune.remove` then leaves exactly
        θ ⊙ m.

        Args:
            network: A network, its state dict or a checkpoint. It does not change.

        Raises:
            ValueError: The mask does not fit the network.

        Example:
            >>> from torch.nn.utils import prune
            >>> model, mask = torch.nn.Linear(2, 1), harness.Mask({"weight": torch.tensor([[True, False]])})
            >>> state = mask.to_torch_prune(model)
            >>> for name in mask:
            ...     module, _, parameter = name.rpartition(".")
            ...     _ = prune.identity(model.get_submodule(module), parameter)
            >>> model.load_state_dict(state)
            <All keys matched successfully>
            >>> prune.remove(model, "weight").weight.count_nonzero()
            tensor(1)
        """
        return formats.to_torch_prune(self.tensors, network)

    def to_csr(
        self, network: formats.Network | None = None, *, dtype: torch.dtype = torch.float32
    ) -> dict[str, torch.Tensor]:
        """Return each masked tensor as a sparse CSR matrix.

        A weight of shape (out, in, height, width) becomes a matrix (out, in · height · width). It multiplies the
        columns of `torch.nn.functional.unfold`. The matrix stores exactly the kept weights, also those that are zero.

        Args:
            network: A network, its state dict or a checkpoint, which gives the values. None: the values are 1.
            dtype: Type of the result without a network.

        Raises:
            ValueError: The mask does not fit the network.

        Example:
            >>> mask = harness.Mask({"conv.weight": torch.ones(8, 4, 3, 3, dtype=torch.bool)})
            >>> mask.to_csr({"conv.weight": torch.randn(8, 4, 3, 3)})["conv.weight"].shape
            torch.Size([8, 36])
        """
        if network is None:
            return formats.to_csr(self.tensors, self.to_dense(dtype=dtype))
        state, keys = formats.masked_state(self.tensors, network)
        return formats.to_csr(self.tensors, {name: state[key] for name, key in keys.items()})


@dataclass(frozen=True, eq=False, repr=False)
class SignedMask:
    """The signed mask s = sign₀(θ ⊙ m), together with m.

    s is int8 in {−1, 0, +1} for every parameter. `norm` names the norm parameters ψ. Their signs are recorded, but
    applying the signed mask changes ψ only on request (method: "touches φ only"). Two signed masks are equal if signs,
    masks and `norm` are.

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
    metadata: dict[str, Any] = field(default_factory=dict)
    origin: str = ""
    """The run that the signed mask was loaded from, as text for `repr`. It is not saved to a file."""
    _bound: dict[str, weakref.ref[nn.Parameter]] = field(default_factory=dict, init=False)

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
        params, norm = _by_names(mask.tensors, params), [norm] if isinstance(norm, str) else list(norm)
        check_fits(mask.shapes(), {name: param.shape for name, param in params.items()}, "the mask")
        if unknown := [name for name in norm if name not in params]:
            raise ValueError(f"norm names {listed(unknown)}, which the network does not have")
        mask = mask.to("cpu")
        signs = {name: param.detach().cpu().sign().to(torch.int8) for name, param in params.items()}
        for name, kept in mask.tensors.items():
            signs[name] = signs[name] * kept
        return cls(signs, mask, frozenset(norm))

    def __repr__(self) -> str:
        """Return three lines: counts, tensors by their role, and the origin."""
        # Phase: counts.
        head = f"SignedMask: {_kept_of(self.mask.tensors, 'prunable weights')}"
        if not _without_values(self.signs) and (zeros := self.num_zero_signs):
            head += f", {zeros:,} kept parameters without a sign"

        # Phase: tensors by role. The weights of the classifier come before biases.
        rest = {name: sign for name, sign in self.signs.items() if name not in self.mask.tensors.keys() | self.norm}
        others = sorted(rest, key=lambda name: -rest[name].ndim)
        roles = (
            f"{count(len(self.mask), 'masked tensor')}: {few_names(self.mask.tensors)}; "
            f"{count(len(self.norm), 'norm tensor')} ψ; never pruned: {few_names(others)}"
        )

        # Phase: what is known of its making.
        told = [f"{name} {short(self.metadata[name])}" for name in _SHOWN_METADATA if name in self.metadata]
        if self.origin:
            told.append(for_terminal(self.origin))
        elif "level_digest" in self.metadata:
            told.append(f"key {str(self.metadata['level_digest']):.12}…")
        return f"{head}\n  {roles}\n  {', '.join(told) or 'of no recorded run'}{_where(self.signs)}"

    def __eq__(self, other: object) -> bool:
        """Return whether signs, masks and the names of norm parameters are equal. Metadata are not compared."""
        if not isinstance(other, SignedMask):
            return NotImplemented
        return (
            self.norm == other.norm
            and self.signs.keys() == other.signs.keys()
            and self.mask == other.mask
            and all(
                sign.shape == other.signs[name].shape and bool((sign == other.signs[name].to(sign.device)).all())
                for name, sign in self.signs.items()
            )
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return the contents for pickle and copies, which are bound to no network."""
        return self.__dict__ | {"_bound": {}}

    @property
    def density(self) -> float:
        """Return the kept share of the prunable weights, 0..1."""
        return self.mask.density

    @property
    def num_zero_signs(self) -> int:
        """Return how many kept parameters are exactly zero, without a sign."""
        zeros = sum(int((sign == 0).sum()) for sign in self.signs.values())
        return zeros - (self.mask.numel - self.mask.num_remaining)

    def to(self, device: torch.device | str) -> SignedMask:
        """Return this signed mask on a device. Signed masks on any device apply to networks on any device."""
        signs = {name: sign.to(device) for name, sign in self.signs.items()}
        return SignedMask(signs, self.mask.to(device), self.norm, self.metadata, self.origin)

    @torch.no_grad()
    def signed(
        self, params: Mapping[str, torch.Tensor], *, norm: bool = False, unpruned: bool | Collection[str] = True
    ) -> dict[str, torch.Tensor]:
        """Return abs(θ) ⊙ s as new tensors.

        Pruned weights become +0.0. Kept parameters with sign 0 keep their value.

        Args:
            params: θ by parameter name. Prefixes of DDP, DataParallel and torch.compile stay in the result. Names of
                one shared tensor get the same values.
            norm: Whether norm parameters get their signs too. By default they keep their values.
            unpruned: Whether other parameters outside the mask (biases, the classifier) get their signs, or the names
                of those that do. All others may have another shape, or be missing.

        Raises:
            ValueError: The signed mask does not fit the network.
        """
        changed = self._changed(norm, unpruned)
        held = _by_names(changed, params)
        new = {formats.place(held[name]): value for name, value in self._values(held, changed).items()}
        return {name: new.get(formats.place(param), param).detach().clone() for name, param in params.items()}

    @torch.no_grad()
    def apply_(self, model: nn.Module, *, norm: bool = False, unpruned: bool | Collection[str] = True) -> SignedMask:
        """Set the model's parameters to abs(θ) ⊙ s in place. Returns self.

        Args:
            model: The network. DDP, DataParallel and torch.compile may wrap it, once or several times.
            norm: As in `signed`.
            unpruned: As in `signed`. False leaves biases and classifier as they are, so that a network with another
                classifier fits.

        Raises:
            ValueError: The signed mask does not fit the network, or the network has no values.
        """
        changed = self._changed(norm, unpruned)
        params = _params(changed, model, "apply_")
        for name, value in self._values(params, changed).items():
            params[name].copy_(value)
        self._bound.clear()
        bound = {name: cast("nn.Parameter", params[name]) for name in self.mask.tensors}
        self._bound.update({name: weakref.ref(param) for name, param in bound.items()})
        return self

    def _changed(self, norm: bool, unpruned: bool | Collection[str]) -> list[str]:
        """Return the names of the parameters that get their signs."""
        # Phase: check the arguments. An iterator gives its names only once.
        if not isinstance(norm, bool):
            raise TypeError(f"norm is {norm!r:.60}; give True or False")
        if isinstance(unpruned, bool):
            names = list(self.signs) if unpruned else []
        else:
            names = list(unpruned) if isinstance(unpruned, Iterable) else [unpruned]
            if isinstance(unpruned, str) or not all(isinstance(name, str) for name in names):
                raise TypeError(f"unpruned is {unpruned!r:.60}; give True, False or a list of parameter names")
        if unknown := [name for name in names if name not in self.signs]:
            raise ValueError(f"unpruned names {listed(unknown)}, which the signed mask does not have")

        # Phase: choose the names.
        others = set(names)
        return [
            name for name in self.signs if name in self.mask.tensors or (norm if name in self.norm else name in others)
        ]

    def _values(self, params: Mapping[str, torch.Tensor], changed: Collection[str]) -> dict[str, torch.Tensor]:
        """Return abs(θ) ⊙ s of the parameters that get their signs."""
        self._check(changed, params)
        result = {}
        for name in changed:
            value = params[name].detach()
            sign = self.signs[name].to(value.device)
            # + 0.0 turns the −0.0 of abs(0)·(−1) into +0.0, so that equal values have equal bytes.
            signed = torch.where(sign == 0, value, value.abs() * sign) + 0.0
            if name in self.mask.tensors:
                signed = signed.masked_fill(~self.mask.tensors[name].to(value.device), 0.0)
            result[name] = signed
        return result

    def _check(self, changed: Iterable[str], params: Mapping[str, torch.Tensor]) -> None:
        """Raise ValueError if a parameter that gets its signs is missing or has another shape."""
        expected = {name: self.signs[name].shape for name in changed}
        given = {name: param.shape for name, param in params.items()}
        try:
            check_fits(expected, given, "the signed mask")
        except ValueError as error:
            needed = self.mask.tensors.keys() | (self.norm & expected.keys())
            if any(given.get(name) != expected[name] for name in needed):
                raise
            raise ValueError(
                f"{error}; all masked weights fit: for a network with another classifier give unpruned=False, which "
                "leaves its biases and classifier as they are"
            ) from None

    def keep(self, optimizer: Any, model: nn.Module | None = None) -> KeptSparse:
        """Set the pruned weights to 0 now and after each step of `optimizer`: θ ← θ ⊙ m.

        Signs can still flip during training. The optimizer may be prepared by Accelerate before or afterwards. The
        network may move to another device or dtype.

        Args:
            optimizer: The optimizer of the network, or a list of all its optimizers.
            model: The network, wrapped or not. None: the network of the last `apply_`.

        Returns:
            A handle. Call its `remove()` to stop, or use it as a context manager.

        Raises:
            TypeError: The argument is not an optimizer or a network.
            ValueError: The optimizers hold no weight of the network or lack some, or no network is known.

        Example:
            >>> model = torch.nn.Linear(2, 1)
            >>> mask = harness.Mask({"weight": torch.tensor([[True, False]])})
            >>> signed = harness.SignedMask.of(dict(model.named_parameters()), mask)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> handle = signed.keep(optimizer, model)
            >>> model(torch.ones(1, 2)).sum().backward()
            >>> optimizer.step()
            >>> model.weight[0, 1].item() == 0
            True
        """
        # Phase: the masked weights, and the optimizers that update them.
        optimizers = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
        inner = [hooked_optimizer(one, "mask.keep") for one in optimizers]
        params = self._bound_params() if model is None else _params(self.mask.tensors, model, "keep")
        check_fits(self.mask.shapes(), {name: param.shape for name, param in params.items()}, "the mask")
        params = {name: params[name] for name in self.mask.tensors}
        check_held(params, inner, known=model is not None)

        # Phase: register the hooks.
        self.mask.apply_(params)
        handles = []
        for one in inner:
            own = {id(param) for group in one.param_groups for param in group["params"]}
            kept = [(param, self.mask.tensors[name]) for name, param in params.items() if id(param) in own]
            handles.append(one.register_step_post_hook(remasking(kept)))
        return KeptSparse(handles)

    def _bound_params(self) -> dict[str, torch.Tensor]:
        """Return the masked weights of the network of the last `apply_`."""
        bound = {name: ref() for name, ref in self._bound.items()}
        found = {name: param for name, param in bound.items() if param is not None}
        if not found or len(found) < len(bound):
            why = "is gone" if bound else "is unknown"
            raise ValueError(
                f"the network of this signed mask {why}; give it: mask.keep(optimizer, model), or call "
                "mask.apply_(model) first"
            )
        return dict(found)

    def to_dense(self, network: formats.Network | None = None, *, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        """Return the signs as dense tensors, or a network's state dict θ ⊙ m.

        The values are those of the network. `apply_` and `signed` give it the signs of this mask.

        Args:
            network: As in `Mask.to_dense`.
            dtype: Type of the result without a network.

        Returns:
            Without a network: −1, 0 and 1 by name, for all parameters. With a network: as `Mask.to_dense`.
        """
        if network is None:
            return {name: sign.to(dtype) for name, sign in self.signs.items()}
        return self.mask.to_dense(network)

    def to_torch_prune(self, network: formats.Network) -> dict[str, Any]:
        """Return the state dict of this network as torch.nn.utils.prune stores it. See `Mask.to_torch_prune`."""
        return self.mask.to_torch_prune(network)

    def to_csr(
        self, network: formats.Network | None = None, *, dtype: torch.dtype = torch.float32
    ) -> dict[str, torch.Tensor]:
        """Return each masked tensor as a sparse CSR matrix. See `Mask.to_csr`.

        Args:
            network: It gives the values. None: the values are the signs, −1, 0 or 1.
            dtype: Type of the result without a network.
        """
        if network is None:
            return formats.to_csr(self.mask.tensors, self.to_dense(dtype=dtype))
        return self.mask.to_csr(network)

    def agreement(self, other: SignedMask) -> float:
        """Return the share of equal signs among commonly kept weights, 0..1.

        NaN if no weight is kept by both.

        Raises:
            TypeError: The argument is no signed mask.
            ValueError: A common tensor has two shapes.
        """
        if not isinstance(other, SignedMask):
            raise TypeError(f"agreement takes a signed mask, got {type(other).__name__}")
        names, own, others = self.mask.tensors.keys() & other.mask.tensors.keys(), self.mask, other.mask
        shapes, other_shapes = ({name: one.tensors[name].shape for name in names} for one in (own, others))
        check_fits(shapes, other_shapes, "the signed mask", "the other one")
        agree = common = 0
        for name in names:
            both = self.mask.tensors[name].cpu() & other.mask.tensors[name].cpu()
            common += int(both.sum())
            agree += int(((self.signs[name].cpu() == other.signs[name].cpu()) & both).sum())
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

        Raises:
            ValueError: The metadata are no JSON values.
        """
        # Pack mask bits, sign bits, and positions of zeros.
        tensors: dict[str, torch.Tensor] = {}
        for name, sign in self.signs.items():
            flat = sign.reshape(-1).cpu().numpy()
            if name in self.mask.tensors:
                kept = self.mask.tensors[name].reshape(-1).cpu().numpy()
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
        try:
            canonical_json(said["metadata"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"metadata must be JSON values, such as finite numbers and texts: {error}") from None
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


def _params(names: Collection[str], model: object, call: str) -> dict[str, torch.Tensor]:
    """Return a network's parameters by these names.

    Raises:
        TypeError: The argument is not a network.
        ValueError: A named parameter has no values.
    """
    if not isinstance(model, torch.nn.Module):
        hint = "; `signed` takes tensors by name" if call == "apply_" else ""
        raise TypeError(f"mask.{call} takes a network (torch.nn.Module), got {type(model).__name__}{hint}")
    params = named_as(names, model, buffers=True)  # names of buffers explain why a weight is missing
    check_values({name: params[name] for name in names if name in params}, "use the mask")
    return params


def _by_names(names: Collection[str], params: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors by the expected names, without or with the prefix of a wrapper."""
    if not isinstance(params, Mapping):
        raise TypeError(f"give tensors by name, such as dict(model.named_parameters()), not {type(params).__name__}")
    new = renamed(names, params)
    return {new[key]: param for key, param in params.items()}


_SHOWN_METADATA = ("method", "level", "classifier")
"""Metadata that `repr` shows."""


def _without_values(tensors: Mapping[str, torch.Tensor]) -> bool:
    return any(tensor.is_meta for tensor in tensors.values())


def _kept_of(tensors: Mapping[str, torch.Tensor], what: str = "weights") -> str:
    """Return the counts of masks as text."""
    mask = Mask(dict(tensors))
    if _without_values(tensors):
        return f"{mask.numel:,} {what}, without values"
    return f"{mask.num_remaining:,} of {mask.numel:,} {what} kept (density {mask.density:.3f})"


def _where(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the devices of tensors as the end of a sentence, "" for the CPU."""
    devices = sorted({str(tensor.device) for tensor in tensors.values()} - {"cpu"})
    return f", on {' and '.join(devices)}" if devices else ""


def _unpack_bits(packed: torch.Tensor, count: int) -> np.ndarray:
    if packed.ndim != 1 or packed.dtype != torch.uint8 or packed.numel() != (count + 7) // 8:
        raise ValueError(f"{packed.dtype} {tuple(packed.shape)} of packed bits for {count} values")
    bits = np.unpackbits(packed.numpy())
    if bits[count:].any():
        raise ValueError(f"bits after the {count} values")
    return bits[:count].astype(bool)
