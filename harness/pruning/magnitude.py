"""Pruning with exact counts (`prune` in Algorithm 1, line 8): the number of weights to keep and their selection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any, Self

import numpy as np
import torch

from harness.common.tensors import check_fits
from harness.config import CountRule, Scope, SearchConfig, count_rules_differ
from harness.masks import Mask


def prune(params: Mapping[str, torch.Tensor], mask: Mask, fraction: float) -> Mask:
    """Keep the ⌊(1 − fraction) · live⌋ live weights with the largest |w|. See `PruningSchedule.counts`."""
    importance = {name: param.detach().abs() for name, param in params.items()}
    return PruningSchedule(fraction).next_mask(importance, mask, 1)


def prune_to(params: Mapping[str, torch.Tensor], mask: Mask, count: int) -> Mask:
    """Keep the `count` live weights with the largest |w|. See `keep_largest`."""
    return keep_largest({name: param.detach().abs() for name, param in params.items()}, mask, count)


@torch.no_grad()
def keep_largest(importance: Mapping[str, torch.Tensor], mask: Mask, count: int) -> Mask:
    """Keep the `count` most important live weights, ranked over all masked tensors together.

    If fewer weights are live, all of them are kept. Among equal values, the earlier position wins. Positions are
    ordered by tensor name, then row-major. So the result is the same on every rank and device.

    Args:
        importance: One tensor for each tensor of `mask`, of equal shape. Larger values are more important.
        mask: The live weights.
        count: The number of weights to keep.

    Returns:
        A subset of `mask`, on the CPU.

    Raises:
        ValueError: A tensor is missing, has the wrong shape or holds a non-finite value, or `count` is negative.
    """
    # Phase: check the input and flatten it to NumPy arrays.
    check_fits(mask.shapes(), {name: values.shape for name, values in importance.items()}, "the mask")
    if count < 0:
        raise ValueError(f"cannot keep {count} weights; the count must not be negative")
    names = sorted(mask.tensors)
    live = [mask.tensors[name].reshape(-1).cpu().numpy() for name in names]
    ranked = [importance[name].detach().reshape(-1).cpu() for name in names]
    values = [(v if v.dtype == torch.float64 else v.float()).numpy() for v in ranked]
    # One maximum per tensor finds infinity and NaN, since max() propagates NaN.
    broken = [name for name, flat in zip(names, values, strict=True) if not np.isfinite(flat.max(initial=0))]
    if broken:
        raise ValueError(f"cannot prune: weights or their importance are not finite in {', '.join(broken)}")

    # Phase: select the weights.
    num_live = sum(int(np.count_nonzero(alive)) for alive in live)
    kept = _largest(values, live, min(count, num_live))
    return Mask(
        {name: torch.from_numpy(flat).reshape(mask.tensors[name].shape) for name, flat in zip(names, kept, strict=True)}
    )


def _largest(ranked: Sequence[np.ndarray], live: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """Mark the `count` largest live values of all arrays; among equal values, the earlier position wins."""
    if count == 0:
        return [np.zeros_like(alive) for alive in live]
    # Select among live weights only: at density 0.1 this is ten times less work. On distinct values, introselect
    # (np.partition) is several times faster than torch.kthvalue. It is slow on millions of equal (pruned) values.
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
    """The number of weights that each level of a search keeps. The fields mean the same as in SearchConfig."""

    fraction: float
    densities: tuple[float, ...] | None = None
    scope: Scope = "global"
    one_shot: bool = False
    count_rule: CountRule = "exact"

    @classmethod
    def of(cls, config: SearchConfig) -> Self:
        """Return the pruning schedule of a search."""
        scope, rule = config.pruning_scope, config.count_rule
        return cls(config.pruning_fraction, config.densities, scope, config.one_shot, rule)

    def density(self, level: int) -> float:
        """Return the target density of level `level` ≥ 1."""
        return (1 - self.fraction) ** level if self.densities is None else self.densities[level - 1]

    def counts(self, level: int, mask: Mask) -> dict[str, int]:
        """Return the number of weights that level `level` ≥ 1 keeps of `mask`.

        Without explicit densities the count is ⌊(1 − fraction) · live⌋. The decimal digits of the fraction are taken
        exactly: 0.8 means 4/5, not the nearest double. The older rule `int((1 - fraction) * live)` keeps 1 of 10
        weights for 0.8. With `one_shot`, the formula is applied `level` times. An explicit density gives the nearest
        whole number of weights.

        Args:
            mask: The mask of the previous level.

        Returns:
            One count per tensor name. With scope "global": one count for all tensors, under the name "".

        Raises:
            ValueError: An explicit density needs more weights than are live.
        """
        # Phase: group the tensors that share a count.
        groups = {name: [kept] for name, kept in mask.tensors.items()}
        if self.scope == "global":
            groups = {"": list(mask.tensors.values())}

        # Phase: compute the count of each group.
        counts = {}
        for name, tensors in groups.items():
            live = sum(int(tensor.sum()) for tensor in tensors)
            if self.densities is None:
                fraction, exact = self.fraction, self.count_rule == "exact"
                for _ in range(level if self.one_shot else 1):
                    live = live - ceil(Fraction(str(fraction)) * live) if exact else int((1 - fraction) * live)
                counts[name] = live
                continue
            density = self.densities[level - 1]
            counts[name] = round(density * sum(tensor.numel() for tensor in tensors))
            if counts[name] > live:
                raise ValueError(f"density {density} keeps {counts[name]} weights, but only {live} are alive")
        return counts

    def next_mask(self, importance: Mapping[str, torch.Tensor], mask: Mask, level: int) -> Mask:
        """Return the mask of level `level` ≥ 1: the most important weights among those kept by `mask`."""
        counts = self.counts(level, mask)
        if self.scope == "global":
            return keep_largest(importance, mask, counts[""])
        layers = {name: Mask({name: kept}) for name, kept in mask.tensors.items()}
        return Mask(
            {name: keep_largest(importance, layer, counts[name]).tensors[name] for name, layer in layers.items()}
        )

    def determinants(self, level: int) -> dict[str, Any]:
        """Return the pruning options that enter the key of level `level`.

        Only options that differ from their default appear. Densities of earlier levels are left out, because the key
        already depends on the parent run.
        """
        unusual: dict[str, Any] = {}
        if self.densities is not None and level:
            unusual["density"] = self.densities[level - 1]
        elif self.densities is None and self.count_rule == "exact" and count_rules_differ(self.fraction):
            unusual["count_rule"] = "exact"
        if self.scope != "global":
            unusual["scope"] = self.scope
        if self.one_shot:
            unusual["one_shot"] = True
        return {"pruning": unusual} if unusual and level else {}
