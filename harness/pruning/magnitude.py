"""Global magnitude pruning with an exact count (the `prune` of Algorithm 1, line 8)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from harness.masks import Mask, check_fits


@torch.no_grad()
def prune(params: Mapping[str, torch.Tensor], mask: Mask, fraction: float) -> Mask:
    """Keep the `int((1 − fraction) · live)` live weights of largest |w|, over all masked tensors together.

    Ties are broken by position (tensors in order of name, then row-major: the earlier stays), so the result is the
    same on every rank and device. The mask returned lives on the CPU and is a subset of `mask`. A non-finite weight
    is a ValueError naming its tensor.
    """
    check_fits(mask.shapes(), {name: param.shape for name, param in params.items()}, "the mask")
    names = sorted(mask.tensors)
    live = torch.cat([mask.tensors[name].reshape(-1).cpu() for name in names])
    magnitudes = torch.cat([params[name].detach().reshape(-1).float().cpu() for name in names]).abs_()
    if not bool(torch.isfinite(magnitudes.sum(dtype=torch.float64))):
        broken = [name for name in names if not bool(torch.isfinite(params[name]).all())]
        raise ValueError(f"cannot prune: weights are not finite in {', '.join(broken)}")
    num_live = int(live.sum())
    num_keep = int((1 - fraction) * num_live)
    magnitudes.masked_fill_(~live, -1.0)  # below every |w|, so a dead weight never comes back
    kept = _largest(magnitudes, num_keep)
    pieces = kept.split([mask.tensors[name].numel() for name in names])
    return Mask({name: piece.reshape(mask.tensors[name].shape) for name, piece in zip(names, pieces, strict=True)})


def _largest(values_N: torch.Tensor, count: int) -> torch.Tensor:
    """Return the bool tensor (N,) of the `count` largest values; among equals the earlier position wins."""
    if count == 0:
        return torch.zeros_like(values_N, dtype=torch.bool)
    # numpy's introselect is several times faster than torch.kthvalue on tens of millions of values
    position = values_N.numel() - count
    threshold = float(_nth_smallest(values_N, position))
    kept = values_N > threshold
    missing = count - int(kept.sum())
    at_threshold = (values_N == threshold).nonzero().reshape(-1)
    kept[at_threshold[:missing]] = True
    return kept


def _nth_smallest(values_N: torch.Tensor, position: int) -> float:
    import numpy as np

    return np.partition(values_N.numpy(), position)[position]
