"""Build the start of a final training from a ticket (method, section 4)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch

from harness.common.seeds import derive_seed
from harness.common.tensors import below
from harness.config import UnprunedSigns
from harness.masks import Mask, SignedMask

Params = dict[str, torch.Tensor]


def start(
    kind: str,
    theta_init: Params,
    ticket: Mapping[str, torch.Tensor],
    signed_mask: SignedMask,
    *,
    seed: int,
    unpruned: bool | Collection[str] = True,
) -> tuple[Params, Mask]:
    """Return parameters θ and mask m at the start of a final training.

    Pruned weights are +0.0.

    Args:
        kind: Kind of final training, one of `harness.config.Kind`.
        theta_init: The fresh initialisation.
        ticket: θ_T, the parameters of the ticket.
        signed_mask: s_T, the signed mask of the ticket.
        seed: Seed of the controls: random signs and random mask.
        unpruned: Whether the signs of biases and the classifier are transferred, or the names of those that are.

    Raises:
        ValueError: The kind is unknown.
    """
    mask = signed_mask.mask
    # Each kind takes a different part of the ticket.
    if kind == "retrain":
        params = {name: tensor.clone() for name, tensor in ticket.items()}
    elif kind == "mask":
        params = {name: tensor.clone() for name, tensor in theta_init.items()}
    elif kind == "random_mask":
        mask = _random_mask(mask, seed)
        params = {name: tensor.clone() for name, tensor in theta_init.items()}
    elif kind == "random_signs":
        params = _random_signs(signed_mask, seed).signed(theta_init, unpruned=unpruned)
    elif kind == "signed_mask_norm_const":
        params = signed_mask.signed(_constant_norm(theta_init, signed_mask.norm), norm=True, unpruned=unpruned)
    elif kind == "signed_mask_norm":
        params = signed_mask.signed(theta_init, unpruned=unpruned)
        params.update({name: ticket[name].clone() for name in signed_mask.norm})
    elif kind == "signed_mask":
        params = signed_mask.signed(theta_init, unpruned=unpruned)
    else:
        raise ValueError(f"unknown kind {kind!r}; see harness.config.Kind")
    mask.apply_(params)
    return params, mask


def unpruned_names(signed_mask: SignedMask, which: UnprunedSigns, classifier: str | Sequence[str]) -> set[str]:
    """Return the parameters outside mask and ψ whose signs are transferred.

    `classifier` is the dotted name of the classifier's module, or the names of several.
    """
    outside = signed_mask.signs.keys() - signed_mask.mask.tensors.keys() - signed_mask.norm
    head = {name for name in outside if name.startswith(below(classifier))}
    return {"both": outside, "biases": outside - head, "classifier": head, "none": set()}[which]


def pruned_ticket(before: Mapping[str, torch.Tensor], signed_mask: SignedMask) -> tuple[Params, SignedMask]:
    """Return the ticket right after pruning, before any training under m_T.

    Algorithm 1 prints it this way.

    Args:
        before: θ_{T−1}.
        signed_mask: Signed mask of level T. Only m_T and the names of ψ are used.

    Returns:
        θ_{T−1} ⊙ m_T, and its sign₀.
    """
    params = {name: tensor.clone() for name, tensor in before.items()}
    signed_mask.mask.apply_(params)
    return params, SignedMask.of(params, signed_mask.mask, signed_mask.norm)


def without_classifier(signed_mask: SignedMask, classifier: str | Sequence[str]) -> SignedMask:
    """Return the signed mask without the classifier, for networks with another classifier."""

    def rest(tensors: Mapping[str, torch.Tensor]) -> Params:
        return {name: tensor for name, tensor in tensors.items() if not name.startswith(below(classifier))}

    return SignedMask(rest(signed_mask.signs), Mask(rest(signed_mask.mask.tensors)), signed_mask.norm)


def _constant_norm(theta_init: Params, norm: frozenset[str]) -> Params:
    """Return θ_init with norm weights 1 and norm biases 0.1 (paper, Appendix A)."""
    constant = {name: torch.full_like(theta_init[name], 0.1 if name.endswith("bias") else 1.0) for name in norm}
    return theta_init | constant


def _random_signs(signed_mask: SignedMask, seed: int) -> SignedMask:
    """Return the same mask with independent, fair random signs (control)."""
    signs = dict(signed_mask.signs)
    for name, kept in signed_mask.mask.tensors.items():
        generator = np.random.Generator(np.random.Philox(key=derive_seed(seed, "random_signs", name)))
        coin = torch.from_numpy(generator.integers(0, 2, tuple(kept.shape)).astype(np.int8) * 2 - 1)
        signs[name] = (coin * kept).to(torch.int8)
    return SignedMask(signs, signed_mask.mask, signed_mask.norm)


def _random_mask(mask: Mask, seed: int) -> Mask:
    """Return a random mask with equal counts per tensor (control)."""
    tensors = {}
    for name, kept in mask.tensors.items():
        generator = np.random.Generator(np.random.Philox(key=derive_seed(seed, "random_mask", name)))
        flat = np.zeros(kept.numel(), dtype=bool)
        flat[generator.permutation(kept.numel())[: int(kept.sum())]] = True
        tensors[name] = torch.from_numpy(flat.reshape(kept.shape))
    return Mask(tensors)
