"""Augmentation as a pure function of key, sample index and draw number.

    draw(key, index, d) = mix(mix(key + φ·(index + 1)) + φ·(d + 1))   mod 2⁶⁴,   φ = 0x9E3779B97F4A7C15

mix is the output function of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014). An
integer below n is (draw >> 32)·n >> 32. A real number in [0, 1) is (draw >> 11)·2⁻⁵³. The result therefore does not
depend on worker, rank, loader or earlier samples.

The memory loader runs the formulas in NumPy on whole arrays. The FFCV loader compiles them with numba, for one
sample at a time. Each formula exists once, as a factory with argument `draw`. Its arithmetic means the same in NumPy
and numba, so both loaders give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

_PHI = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_0, _1, _2, _3, _11, _27, _30, _31, _32 = (np.uint64(bits) for bits in (0, 1, 2, 3, 11, 27, 30, 31, 32))

# Draw numbers. A data set uses either crops or boxes. Each box attempt uses four numbers, from BOX on.
TOP, LEFT, FLIP, BOX = (np.uint64(number) for number in (0, 1, 2, 4))
BOX_ATTEMPTS = 10


def draw(key: Any, index: Any, number: Any) -> Any:
    """Return the uint64 draw of key, sample index and draw number.

    All are uint64, scalars or arrays.
    """
    x = key + _PHI * (index + _1)
    x = (x ^ (x >> _30)) * _MIX_1
    x = (x ^ (x >> _27)) * _MIX_2
    x = (x ^ (x >> _31)) + _PHI * (number + _1)
    x = (x ^ (x >> _30)) * _MIX_1
    x = (x ^ (x >> _27)) * _MIX_2
    return x ^ (x >> _31)


@cache
def crop_flip_formula(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function (key, index, padding) → (top, left, flip), each uint64.

    (top, left), each 0 … 2·padding, is the corner of the crop in the padded image. flip is 0 or 1.
    """

    def crop_flip(key: Any, index: Any, padding: Any) -> Any:
        places = padding + padding + _1
        top = ((draw(key, index, TOP) >> _32) * places) >> _32
        left = ((draw(key, index, LEFT) >> _32) * places) >> _32
        return top, left, draw(key, index, FLIP) & _1

    return crop_flip


def resized_crop_formula(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that draws the box of torchvision's RandomResizedCrop.

    Its arguments are (key, index, height, width, scale, ratio), and it returns (top, left, box height, box width).
    `scale` and `ratio` are (low, high). key and index are uint64.

    Each of up to ten attempts draws a uniform share of the area and a log-uniform aspect ratio. If no box fits, the
    result is the largest centred box with an allowed ratio.
    """

    def resized_crop(
        key: Any, index: Any, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
    ) -> tuple[np.int64, np.int64, np.int64, np.int64]:
        # Try random boxes.
        log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
        for attempt in range(BOX_ATTEMPTS):
            first = BOX + np.uint64(4 * attempt)
            share = float(draw(key, index, first) >> _11) * 2.0**-53
            shape = float(draw(key, index, first + _1) >> _11) * 2.0**-53
            area = height * width * (scale[0] + (scale[1] - scale[0]) * share)
            aspect = math.exp(log_low + (log_high - log_low) * shape)
            box_width, box_height = int(round(math.sqrt(area * aspect))), int(round(math.sqrt(area / aspect)))
            if 0 < box_width <= width and 0 < box_height <= height:
                down = (draw(key, index, first + _1 + _1) >> _32) * np.uint64(height - box_height + 1)
                right = (draw(key, index, first + _1 + _1 + _1) >> _32) * np.uint64(width - box_width + 1)
                return np.int64(down >> _32), np.int64(right >> _32), np.int64(box_height), np.int64(box_width)
        # No box fits: take the largest centred one with an allowed ratio.
        box_height, box_width = height, width
        if width < ratio[0] * height:
            box_height = max(1, min(height, int(round(width / ratio[0]))))
        elif width > ratio[1] * height:
            box_width = max(1, min(width, int(round(height * ratio[1]))))
        top, left = (height - box_height) // 2, (width - box_width) // 2
        return np.int64(top), np.int64(left), np.int64(box_height), np.int64(box_width)

    return resized_crop


def enlargement(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return source positions and weights for bilinear enlargement to `size` pixels.

    A side of b pixels is enlarged to S = `size`. Target pixel i then lies at x = ((2i + 1)·b − S) / 2S, in source
    pixels and clamped to 0 … b − 1. Interpolation with these tables uses only integers, so every language and device
    gives the same bits.

    Returns:
        ⌊x⌋ and 2S·(x − ⌊x⌋) for b = 0 … `size`, each int64 (size + 1, size).
    """
    sides, places = np.arange(size + 1)[:, None], np.arange(size)[None, :]
    twice = np.clip((2 * places + 1) * sides - size, 0, np.maximum(sides - 1, 0) * 2 * size)
    return twice // (2 * size), twice % (2 * size)


def center_crop(height: int, width: int, size: int, test_resize: int) -> tuple[int, int, int, int]:
    """Return the centre crop as (top, left, side, side), in pixels.

    Its side is size/test_resize of the image's shorter side.
    """
    side = max(1, min(height, width) * size // test_resize)
    return (height - side) // 2, (width - side) // 2, side, side


def crop_flips(key: int, indices_N: np.ndarray, padding: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (top, left, flip) for many samples: int64, int64, bool, each (N,)."""
    with np.errstate(over="ignore"):  # the hash overflows intentionally
        top, left, flip = crop_flip_formula(draw)(np.uint64(key), indices_N.astype(np.uint64), np.uint64(padding))
    return top.astype(np.int64), left.astype(np.int64), flip.astype(bool)


def flips(key: int, indices_N: np.ndarray) -> np.ndarray:
    """Return whether each of many samples is flipped: bool (N,)."""
    with np.errstate(over="ignore"):
        return (draw(np.uint64(key), indices_N.astype(np.uint64), FLIP) & _1).astype(bool)


def resized_crop_boxes(
    key: int, indices_N: np.ndarray, size: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> np.ndarray:
    """Return the boxes of many samples, int64 (N, 4).

    Images have `size` × `size` pixels. The boxes equal those of `resized_crop_box`. NumPy's exponential may differ from
    the compiled code's in the last bit. This can change the rounding of a side that is close to a half-integer, so such
    samples use `resized_crop_box`. So do samples for which no attempt fits.
    """
    boxes_N4 = np.empty((len(indices_N), 4), np.int64)
    open_M = np.arange(len(indices_N))  # samples without a box so far
    # Samples with a side too close to a half-integer.
    doubtful: list[np.ndarray] = []
    for attempt in range(BOX_ATTEMPTS):
        with np.errstate(over="ignore"):
            first = BOX + np.uint64(4 * attempt)
            draws_4M = [draw(np.uint64(key), indices_N[open_M].astype(np.uint64), first + k) for k in (_0, _1, _2, _3)]
        # Compute the sides of this attempt's boxes.
        share, shape = ((values >> _11).astype(np.float64) * 2.0**-53 for values in draws_4M[:2])
        area = size * size * (scale[0] + (scale[1] - scale[0]) * share)
        aspect = np.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * shape)
        sides_2M = np.sqrt(np.stack([area / aspect, area * aspect]))  # height, width
        near_half = (np.abs(sides_2M - np.floor(sides_2M) - 0.5) < 1e-9).any(0)
        sides_2M = np.rint(sides_2M).astype(np.int64)
        # Place the boxes that fit.
        fits = ((sides_2M > 0) & (sides_2M <= size)).all(0) & ~near_half
        free_2M = (size + 1 - sides_2M[:, fits]).astype(np.uint64)
        for column, values, free in zip((0, 1), draws_4M[2:], free_2M, strict=True):
            boxes_N4[open_M[fits], column] = ((values[fits] >> _32) * free >> _32).astype(np.int64)
        boxes_N4[open_M[fits], 2:] = sides_2M[:, fits].T
        doubtful.append(open_M[near_half])
        open_M = open_M[~fits & ~near_half]
    # Use the scalar formula for the remaining samples.
    for position in np.concatenate([*doubtful, open_M]):
        boxes_N4[position] = resized_crop_box(key, int(indices_N[position]), size, size, scale, ratio)
    return boxes_N4


def resized_crop_box(
    key: int, index: int, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of one sample's box, in pixels.

    `height` and `width` are the size of the image.
    """
    with np.errstate(over="ignore"):
        box = resized_crop_formula(draw)(np.uint64(key), np.uint64(index), height, width, scale, ratio)
    top, left, box_height, box_width = (int(number) for number in box)
    return top, left, box_height, box_width
