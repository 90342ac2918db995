"""Compare two signed masks layer by layer: kept weights and signs in common."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from harness.common.tensors import check_fits
from harness.masks import SignedMask


@dataclass(frozen=True)
class LayerSigns:
    """Counts of one prunable tensor in two signed masks, a and b, and the shares they give."""

    name: str
    numel: int
    kept_a: int
    kept_b: int
    kept_both: int
    agreeing: int
    """Weights kept in both whose signs are equal."""

    @property
    def density_a(self) -> float:
        """Kept share in a, 0..1."""
        return _share(self.kept_a, self.numel)

    @property
    def density_b(self) -> float:
        """Kept share in b, 0..1."""
        return _share(self.kept_b, self.numel)

    @property
    def mask_overlap(self) -> float:
        """Jaccard index of the kept sets, |a ∩ b| / |a ∪ b|, 0..1; NaN where neither keeps anything."""
        return _share(self.kept_both, self.kept_a + self.kept_b - self.kept_both)

    @property
    def sign_agreement(self) -> float:
        """Share of the weights kept in both whose signs are equal, 0..1 (unrelated signs: ½); NaN for none in both."""
        return _share(self.agreeing, self.kept_both)

    @classmethod
    def total(cls, layers: Iterable[LayerSigns], name: str = "all layers") -> Self:
        """Count all layers together: every weight weighs the same, not every layer."""
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
    """Return one row for each prunable tensor, in a's order; ValueError if the two are not of one network's shape."""
    check_fits(a.mask.shapes(), b.mask.shapes(), "the first signed mask")
    check_fits(b.mask.shapes(), a.mask.shapes(), "the second signed mask")
    rows = []
    for name, kept_a in a.mask.tensors.items():
        kept_b = b.mask.tensors[name]
        both = kept_a & kept_b
        agreeing = both & (a.signs[name] == b.signs[name])
        counts = (int(tensor.sum()) for tensor in (kept_a, kept_b, both, agreeing))
        rows.append(LayerSigns(name, kept_a.numel(), *counts))
    return rows


def overlap_by_chance(layers: Iterable[LayerSigns]) -> float:
    """Return the Jaccard index, 0..1, of unrelated masks with the same counts in each layer.

    Each layer's expected common count, kept_a · kept_b / numel, stands for its mean; NaN where nothing is kept.
    """
    layers = list(layers)
    both = sum(layer.kept_a * layer.kept_b / layer.numel for layer in layers if layer.numel)
    either = sum(layer.kept_a + layer.kept_b for layer in layers) - both
    return both / either if either else math.nan


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
