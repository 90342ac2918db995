"""Test sign agreement, mask overlap and density on small masks."""

from __future__ import annotations

import math

import pytest
import torch

from harness.masks import Mask, SignedMask
from harness.masks.signs import LayerSigns, compare_signs, overlap_by_chance


def signed_mask(**weights: list[float]) -> SignedMask:
    """Return a signed mask of these weights, in which zeros are pruned. The tensor `bias` is not masked."""
    params = {name: torch.tensor(values) for name, values in weights.items()}
    return SignedMask.of(params, Mask({name: tensor != 0 for name, tensor in params.items() if name != "bias"}))


A = signed_mask(x=[1.0, -2.0, 3.0, 0.0, 0.0, 0.0, 1.0, 1.0], y=[0.0, 1.0], bias=[1.0])
B = signed_mask(x=[5.0, 2.0, 0.0, -1.0, 0.0, 0.0, 1.0, -1.0], y=[1.0, 0.0], bias=[-1.0])


def test_counts_and_shares_of_each_layer():
    x, y = compare_signs(A, B)
    assert x == LayerSigns("x", numel=8, kept_a=5, kept_b=5, kept_both=4, agreeing=2)
    assert (x.density_a, x.density_b, x.sign_agreement) == (5 / 8, 5 / 8, 0.5)
    assert x.mask_overlap == 4 / 6
    assert y == LayerSigns("y", numel=2, kept_a=1, kept_b=1, kept_both=0, agreeing=0)
    assert y.mask_overlap == 0.0
    assert math.isnan(y.sign_agreement)


def test_the_total_counts_weights_and_equals_the_agreement():
    total = LayerSigns.total(compare_signs(A, B))
    assert total == LayerSigns("all layers", 10, 6, 6, 4, 2)
    assert total.sign_agreement == A.agreement(B)
    assert total.density_a == A.density


def test_agreement_is_one_with_itself_and_zero_with_negated_signs():
    opposite = SignedMask({name: -signs for name, signs in A.signs.items()}, A.mask)
    assert [row.sign_agreement for row in compare_signs(A, A)] == [1.0, 1.0]
    assert [row.sign_agreement for row in compare_signs(A, opposite)] == [0.0, 0.0]
    assert [row.mask_overlap for row in compare_signs(A, opposite)] == [1.0, 1.0]


def test_the_overlap_of_an_empty_layer_is_nan():
    nothing = signed_mask(x=[0.0, 0.0])
    (row,) = compare_signs(nothing, nothing)
    assert math.isnan(row.mask_overlap)
    assert row.density_a == 0.0


def test_masks_of_different_networks_are_refused():
    with pytest.raises(ValueError, match="the second has no y"):
        compare_signs(A, signed_mask(x=[1.0] * 8))
    with pytest.raises(ValueError, match="the first signed mask has no y"):
        compare_signs(signed_mask(x=[1.0] * 8), A)


def test_overlap_by_chance_equals_that_of_shuffled_masks():
    """Compare the formula with the mean over 100 shuffled pairs.

    Masks are shuffled within each layer, because densities differ between layers.
    """
    generator = torch.Generator().manual_seed(0)
    kept = {"x": (torch.arange(4000) < 400, torch.arange(4000) < 1200), "y": (torch.arange(100) < 90,) * 2}

    def shuffled(number: int) -> SignedMask:
        masks = {name: pair[number][torch.randperm(len(pair[0]), generator=generator)] for name, pair in kept.items()}
        return SignedMask.of({name: mask.float() for name, mask in masks.items()}, Mask(masks))

    drawn = [LayerSigns.total(compare_signs(shuffled(0), shuffled(1))).mask_overlap for _ in range(100)]
    expected = overlap_by_chance(compare_signs(shuffled(0), shuffled(1)))
    assert expected == pytest.approx(sum(drawn) / 100, rel=0.02)
    assert math.isnan(overlap_by_chance([]))
