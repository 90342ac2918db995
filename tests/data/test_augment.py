"""Test the keyed draws against the documented formulas in plain Python integers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.data import augment
from tests.data.keyed_reference import PHI, WORD, box, draw, mix

KEYS = [0, 1, 12345678901234567890, WORD - 1]


def test_mix_is_splitmix64() -> None:
    """Compare with the published first outputs of splitmix64 for seed 1234567."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [mix((1234567 + PHI * (step + 1)) % WORD) for step in range(5)] == expected


@pytest.mark.parametrize("key", KEYS)
def test_crops_and_flips_follow_the_formula(key: int) -> None:
    indices = np.array([0, 1, 2, 59_999, 1_281_166])
    top, left, flip = augment.crop_flips(key, indices, padding=4)
    for position, index in enumerate(indices.tolist()):
        assert top[position] == (draw(key, index, 0) >> 32) * 9 >> 32
        assert left[position] == (draw(key, index, 1) >> 32) * 9 >> 32
        assert flip[position] == draw(key, index, 2) % 2
    assert (augment.flips(key, indices) == flip).all()


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (1, 1), (3, 500), (500, 2), (224, 224)])
def test_boxes_follow_the_formula_and_lie_in_the_image(height: int, width: int) -> None:
    for index in range(200):
        args = (KEYS[index % 4], index, height, width, (0.08, 1.0), (3 / 4, 4 / 3))
        found = augment.resized_crop_box(*args)
        assert found == box(*args)
        top, left, box_height, box_width = found
        assert 0 <= top <= top + box_height <= height
        assert 0 <= left <= left + box_width <= width
        assert min(box_height, box_width) >= 1


@pytest.mark.parametrize("scale", [(0.5, 1.0), (0.08, 1.0), (0.999, 1.0)])
def test_batched_boxes_equal_single_boxes(scale: tuple[float, float]) -> None:
    indices = np.arange(3_000) * 33
    found = augment.resized_crop_boxes(KEYS[2], indices, 64, scale, (3 / 4, 4 / 3))
    assert [tuple(row) for row in found.tolist()] == [
        box(KEYS[2], index, 64, 64, scale, (3 / 4, 4 / 3)) for index in indices.tolist()
    ]


@pytest.mark.long
def test_compiled_boxes_equal_plain_python() -> None:
    pytest.importorskip("ffcv")
    import harness.data.ffcv.loader  # noqa: F401  (must set numba's threading layer first)
    from harness.data.ffcv import kernels as ffcv_kernels

    for index in range(4_000):
        key, height, width = draw(7, index, 0), 40 + index % 461, 30 + index % 470
        args = (height, width, (0.08, 1.0), (3 / 4, 4 / 3))
        compiled = ffcv_kernels._resized_crop(np.uint64(key), np.uint64(index), *args)
        assert compiled == box(key, index, *args)


def test_boxes_have_the_specified_distribution() -> None:
    """Check that area and log aspect ratio are uniform: their means lie within 5 standard errors.

    The scale is so small that every box fits at the first attempt.
    """
    shares, logs = [], []
    for index in range(4000):
        _, _, height, width = augment.resized_crop_box(3, index, 1000, 1000, (0.1, 0.3), (3 / 4, 4 / 3))
        shares.append(height * width / 1e6)
        logs.append(math.log(width / height))
    assert abs(np.mean(shares) - 0.2) < 5 * 0.2 / math.sqrt(12 * 4000)
    assert abs(np.mean(logs)) < 5 * 2 * math.log(4 / 3) / math.sqrt(12 * 4000)


def test_every_crop_position_and_flip_is_equally_likely() -> None:
    indices = np.arange(90_000)
    top, left, flip = augment.crop_flips(99, indices, padding=1)
    counts = np.bincount(top * 6 + left * 2 + flip, minlength=18)
    expected = len(indices) / 18
    assert ((counts - expected) ** 2 / expected).sum() < 40.8  # χ², 17 degrees of freedom, p = 0.001


def test_draws_of_neighbouring_keys_are_uncorrelated() -> None:
    """Check the correlation of draws with neighbouring keys.

    Draws of the same sample and of neighbouring samples must be uncorrelated.
    """
    indices = np.arange(1000)
    first, second = augment.crop_flips(5, indices, 100), augment.crop_flips(6, indices, 100)
    for a, b in zip(first[:2], second[:2], strict=True):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.15
        assert abs(np.corrcoef(a[1:], b[:-1])[0, 1]) < 0.15


@pytest.mark.parametrize(("height", "width"), [(256, 300), (300, 256), (1, 1), (375, 500)])
def test_centre_crop_is_centred(height: int, width: int) -> None:
    top, left, side, other = augment.center_crop(height, width, 224, 256)
    assert side == other == max(1, min(height, width) * 224 // 256)
    assert abs((height - side) - 2 * top) <= 1
    assert abs((width - side) - 2 * left) <= 1
