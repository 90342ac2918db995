"""Test `prune`: exact counts, sign symmetry, nested masks, and ties broken by position."""

import numpy as np
import pytest
import torch

from harness.masks import Mask
from harness.pruning import prune


def params(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in (("a", (13, 7)), ("b", (5, 3, 3, 3)))}


def reference(values: dict[str, torch.Tensor], mask: Mask, fraction: float) -> np.ndarray:
    """Prune in plain Python: sort live weights by (−|w|, position).

    Returns:
        The kept weights as a flat Boolean array over all tensors, in order of their names.
    """
    flat = np.concatenate([values[name].numpy().ravel() for name in sorted(mask.tensors)])
    live = np.concatenate([mask.tensors[name].numpy().ravel() for name in sorted(mask.tensors)])
    order = sorted(np.flatnonzero(live), key=lambda index: (-abs(flat[index]), index))
    kept = np.zeros(flat.size, dtype=bool)
    kept[order[: int((1 - fraction) * len(order))]] = True
    return kept


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.97])
@pytest.mark.parametrize("rounded", [False, True])
def test_equals_a_plain_sort_over_levels(fraction, rounded):
    values = params()
    if rounded:  # many ties
        values = {name: (value * 2).round() for name, value in values.items()}
    mask = Mask.dense(values, values)
    for _ in range(4):
        expected = reference(values, mask, fraction)
        pruned = prune(values, mask, fraction)
        found = np.concatenate([pruned.tensors[name].numpy().ravel() for name in sorted(values)])
        assert np.array_equal(found, expected)
        assert pruned.num_remaining == int((1 - fraction) * mask.num_remaining)
        assert pruned.issubset(mask)
        mask = pruned


def test_fifteen_levels_have_the_density_of_the_paper():
    values = {"w": torch.randn(1000, 1000)}
    mask = Mask.dense(values, values)
    for level in range(1, 16):
        mask = prune(values, mask, 0.2)
        assert mask.density == pytest.approx(0.8**level, abs=level * 1e-6)


def test_negative_weights_are_ranked_like_positive_ones():
    values = params()
    mask = Mask.dense(values, values)
    mirrored = {name: -value for name, value in values.items()}
    assert prune(values, mask, 0.3).equal(prune(mirrored, mask, 0.3))


def test_live_zeros_are_pruned_and_pruned_weights_never_return():
    values = {"w": torch.tensor([9.0, 0.0, 0.0, 1.0])}
    mask = Mask({"w": torch.tensor([False, True, True, True])})
    assert prune(values, mask, 0.3).tensors["w"].tolist() == [False, True, False, True]


def test_non_finite_weights_are_named():
    values = params()
    values["b"][0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite in b"):
        prune(values, Mask.dense(values, values), 0.2)
