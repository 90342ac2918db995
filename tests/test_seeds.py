"""Test random streams: hashed from seed and purpose, and independent of each other."""

import numpy as np
import pytest

from harness.common.seeds import SgdNoise, derive_seed


def test_streams_do_not_shift_into_each_other():
    # with seed + epoch, (seed 1, epoch 1) and (seed 2, epoch 0) would be equal
    assert derive_seed(1, "order", 1) != derive_seed(2, "order", 0)
    assert derive_seed(1, "a", "b") != derive_seed(1, "ab")
    assert derive_seed(1, 2) != derive_seed(1, "2")


def test_permutation_is_valid_and_keyed():
    noise = SgdNoise(1, ("search", 3))
    order = noise.permutation(0, 1000)
    assert np.array_equal(np.sort(order), np.arange(1000))
    assert np.array_equal(order, noise.permutation(0, 1000))
    assert not np.array_equal(order, noise.permutation(1, 1000))
    assert not np.array_equal(order, SgdNoise(1, ("search", 4)).permutation(0, 1000))
    assert not np.array_equal(order, SgdNoise(2, ("search", 3)).permutation(0, 1000))


def test_alphas_are_uniform():
    alphas = SgdNoise(5, ("search", 0)).alphas(0, 100_000)
    assert alphas.min() >= 0 and alphas.max() < 1
    counts = np.histogram(alphas, bins=20, range=(0, 1))[0]
    # chi-square with 19 degrees of freedom: above 43.8 with probability 0.001
    assert ((counts - 5000) ** 2 / 5000).sum() < 43.8


def test_other_distributions_of_alpha_are_made_from_the_same_draws():
    uniform, zero, bernoulli, upper = (
        SgdNoise(5, ("search", 0), alpha).alphas(3, 10_000) for alpha in ("uniform", "zero", "bernoulli", "half_to_one")
    )
    assert not zero.any()
    assert np.array_equal(bernoulli, uniform >= 0.5) and set(bernoulli) == {0.0, 1.0}
    assert np.array_equal(upper, 0.5 + uniform / 2) and upper.min() >= 0.5 and upper.max() < 1
    with pytest.raises(ValueError, match="unknown distribution of α 'beta'"):
        SgdNoise(5, ("search", 0), "beta").alphas(0, 1)


def test_seeds_stay_the_same_across_versions():
    # another value would silently change every result with the same seed
    assert derive_seed(1, "order", 0) == 900627761886755983
