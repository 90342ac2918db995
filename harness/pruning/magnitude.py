"""Pruning with exact counts (the `prune` of Algorithm 1, line 8): how many weights a level keeps, and which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from harness.common.tensors import check_fits
from harness.config import Scope, SearchConfig
from harness.masks import Mask


def prune(params: Mapping[str, torch.Tensor], mask: Mask, fraction: float) -> Mask:
    """Keep the `int((1 − fraction) · live)` live weights of largest |w|, else as `prune_to`."""
    return prune_to(params, mask, int((1 - fraction) * mask.num_remaining))


def prune_to(params: Mapping[str, torch.Tensor], mask: Mask, count: int) -> Mask:
    """Keep the `count` live weights of largest |w|; see `keep_largest`."""
    return keep_largest({name: param.detach().abs() for name, param in params.items()}, mask, count)


@torch.no_grad()
def keep_largest(importance: Mapping[str, torch.Tensor], mask: Mask, count: int) -> Mask:
    """Keep the `count` most important live weights, over all masked tensors together; all if there are fewer.

    Ties are broken by position: tensors in order of name, then row-major, the earlier stays. So the result is the same
    on every rank and device.

    Args:
        importance: A tensor for each masked one, in its shape: the larger, the more important.
        mask: The live weights.
        count: How many to keep.

    Returns:
        A subset of `mask`, on the CPU.

    Raises:
        ValueError: A tensor is missing, has another shape or a value that is not finite, or `count` is negative.
    """
    check_fits(mask.shapes(), {name: values.shape for name, values in importance.items()}, "the mask")
    if count < 0:
        raise ValueError(f"cannot keep {count} weights; the count must not be negative")
    names = sorted(mask.tensors)
    live = [mask.tensors[name].reshape(-1).cpu().numpy() for name in names]
    ranked = [importance[name].detach().reshape(-1).cpu() for name in names]
    values = [(v if v.dtype == torch.float64 else v.float()).numpy() for v in ranked]
    # the maximum of NaN and anything is NaN
    broken = [name for name, flat in zip(names, values, strict=True) if not np.isfinite(flat.max(initial=0))]
    if broken:
        raise ValueError(f"cannot prune: weights, or what ranks them, are not finite in {', '.join(broken)}")
    num_live = sum(int(np.count_nonzero(alive)) for alive in live)
    kept = _largest(values, live, min(count, num_live))
    return Mask(
        {name: torch.from_numpy(flat).reshape(mask.tensors[name].shape) for name, flat in zip(names, kept, strict=True)}
    )


def _largest(ranked: Sequence[np.ndarray], live: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """Return bool arrays that mark the `count` largest live values of all; among equals the earlier position wins."""
    if count == 0:
        return [np.zeros_like(alive) for alive in live]
    # the dead are left out before selecting: at density 0.1 that is ten times less work, and introselect, several
    # times faster than torch.kthvalue on distinct values, is slow on millions of equal ones
    candidates = np.concatenate([values[alive] for values, alive in zip(ranked, live, strict=True)])
    position = candidates.size - count
    candidates.partition(position)
    threshold = candidates[position]
    kept = [(values > threshold) & alive for values, alive in zip(ranked, live, strict=True)]
    missing = count - sum(int(np.count_nonzero(flat)) for flat in kept)
    for values, alive, flat in zip(ranked, live, kept, strict=True):
        if missing == 0:
            break
        at_threshold = np.flatnonzero((values == threshold) & alive)[:missing]
        flat[at_threshold] = True
        missing -= at_threshold.size
    return kept


@dataclass(frozen=True)
class PruningSchedule:
    """The counts of a search's masks; `fraction` and `densities` as in SearchConfig."""

    fraction: float
    densities: tuple[float, ...] | None = None
    scope: Scope = "global"
    one_shot: bool = False

    @classmethod
    def of(cls, config: SearchConfig) -> Self:
        """Return the schedule that a search's settings describe."""
        return cls(config.pruning_fraction, config.densities, config.pruning_scope, config.one_shot)

    def density(self, level: int) -> float:
        """Return the density that level `level` ≥ 1 aims at."""
        return (1 - self.fraction) ** level if self.densities is None else self.densities[level - 1]

    def counts(self, level: int, mask: Mask) -> dict[str, int]:
        """Return how many weights level `level` ≥ 1 keeps of `mask`: in each tensor, or under '' over all of them.

        ⌊(1 − fraction) · live⌋; in one shot as many as level after level would have left; of an explicit density the
        nearest whole number. ValueError if that is more than live.
        """
        groups = {name: [kept] for name, kept in mask.tensors.items()}
        if self.scope == "global":
            groups = {"": list(mask.tensors.values())}
        counts = {}
        for name, tensors in groups.items():
            live = sum(int(tensor.sum()) for tensor in tensors)
            if self.densities is None:
                counts[name] = live
                for _ in range(level if self.one_shot else 1):
                    counts[name] = int((1 - self.fraction) * counts[name])
                continue
            density = self.densities[level - 1]
            counts[name] = round(density * sum(tensor.numel() for tensor in tensors))
            if counts[name] > live:
                raise ValueError(f"density {density} keeps {counts[name]} weights, but only {live} are alive")
        return counts

    def next_mask(self, importance: Mapping[str, torch.Tensor], mask: Mask, level: int) -> Mask:
        """Return the mask of level `level` ≥ 1: of the weights that `mask` keeps the most important ones."""
        counts = self.counts(level, mask)
        if self.scope == "global":
            return keep_largest(importance, mask, counts[""])
        layers = {name: Mask({name: kept}) for name, kept in mask.tensors.items()}
        return Mask(
            {name: keep_largest(importance, layer, counts[name]).tensors[name] for name, layer in layers.items()}
        )

    def determinants(self, level: int) -> dict[str, Any]:
        """Return the inputs to the key of level `level` that are not the default, given the level it is pruned from."""
        unusual: dict[str, Any] = {}
        if self.densities is not None and level:
            unusual["density"] = self.densities[level - 1]
        if self.scope != "global":
            unusual["scope"] = self.scope
        if self.one_shot:
            unusual["one_shot"] = True
        return {"pruning": unusual} if unusual and level else {}
