"""Compare masks and signs of two signed masks layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from harness.common.tensors import check_fits
from harness.masks import SignedMask


@dataclass(frozen=True)
class LayerSigns:
    """Counts for one prunable tensor in signed masks a and b."""

    name: str
    numel: int
    kept_a: int
    kept_b: int
    kept_both: int
    agreeing: int
    """Weights that both keep with equal signs."""

    @property
    def density_a(self) -> float:
        """Return the kept share in a, 0..1."""
        return _share(self.kept_a, self.numel)

    @property
    def density_b(self) -> float:
        """Return the kept share in b, 0..1."""
        return _share(self.kept_b, self.numel)

    @property
    def mask_overlap(self) -> float:
        """Return the Jaccard index of the masks, |a ∩ b| / |a ∪ b|, 0..1.

        NaN if neither mask keeps a weight.
        """
        return _share(self.kept_both, self.kept_a + self.kept_b - self.kept_both)

    @property
    def sign_agreement(self) -> float:
        """Return the share of equal signs among commonly kept weights, 0..1.

        Unrelated signs give ½. NaN if no weight is kept by both.
        """
        return _share(self.agreeing, self.kept_both)

    @classmethod
    def total(cls, layers: Iterable[LayerSigns], name: str = "all layers") -> Self:
        """Sum the counts of all layers, so that every weight counts equally."""
        layers = list(layers)
        return cls(
            name=name,
            numel=sum(layer.numel for layer in layers),
            kept_a=sum(layer.kept_a for layer in layers),
            kept_b=sum(layer.kept_b for layer in layers),
            kept_both=sum(layer.kept_both for layer in layers),
            agreeing=sum(layer.agreeing for layer in layers),
        )


def compare_signs(a: SignedMask, b: SignedMask) -> list[LayerSigns]:
    """Compare two signed masks, one row per prunable tensor in a's order.

    Raises:
        ValueError: The two have different tensors or shapes.
    """
    check_fits(a.mask.shapes(), b.mask.shapes(), "the first signed mask", "the second", exactly=True)
    rows = []
    for name, kept_a in a.mask.tensors.items():
        kept_b = b.mask.tensors[name]
        both = kept_a & kept_b
        agreeing = both & (a.signs[name] == b.signs[name])
        counts = (int(tensor.sum()) for tensor in (kept_a, kept_b, both, agreeing))
        rows.append(LayerSigns(name, kept_a.numel(), *counts))
    return rows


def overlap_by_chance(layers: Iterable[LayerSigns]) -> float:
    """Return the Jaccard index, 0..1, that is expected by chance.

    It is for unrelated masks with the same number of kept weights in each layer. Each layer then has kept_a · kept_b /
    numel common weights on average. NaN if nothing is kept.
    """
    layers = list(layers)
    both = sum(layer.kept_a * layer.kept_b / layer.numel for layer in layers if layer.numel)
    either = sum(layer.kept_a + layer.kept_b for layer in layers) - both
    return both / either if either else math.nan


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
