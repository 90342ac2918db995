"""The augmentation of a sample as a function of (key, sample index, draw number) alone.

    draw(key, index, d) = mix(mix(key + φ·(index + 1)) + φ·(d + 1))   mod 2⁶⁴,   φ = 0x9E3779B97F4A7C15

with splitmix64's output function as mix (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014). A
whole number below n is (draw >> 32)·n >> 32, a real number in [0, 1) is (draw >> 11)·2⁻⁵³. So it matters neither which
worker, rank or loader makes the sample nor what came before it.

Every formula is written once, as a factory over `draw`, and in arithmetic on np.uint64 that means the same to NumPy
(whole arrays: the in-memory loader) and to numba (one sample: the FFCV loader), so both make the same bits.
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

# Draw numbers. Crops and boxes never meet in one data set; box attempts go on from BOX in fours.
TOP, LEFT, FLIP, BOX = (np.uint64(number) for number in (0, 1, 2, 4))
BOX_ATTEMPTS = 10


def draw(key: Any, index: Any, number: Any) -> Any:
    """Return the uint64 of (key, sample index, draw number); all uint64, scalars or arrays."""
    x = key + _PHI * (index + _1)
    x = (x ^ (x >> _30)) * _MIX_1
    x = (x ^ (x >> _27)) * _MIX_2
    x = (x ^ (x >> _31)) + _PHI * (number + _1)
    x = (x ^ (x >> _30)) * _MIX_1
    x = (x ^ (x >> _27)) * _MIX_2
    return x ^ (x >> _31)


@cache
def crop_flip_formula(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Return offset(key, index, padding) → (top, left, flip), each uint64.

    (top, left) in 0 … 2·padding is where the crop begins in the padded image; flip is 0 or 1.
    """

    def crop_flip(key: Any, index: Any, padding: Any) -> Any:
        places = padding + padding + _1
        top = ((draw(key, index, TOP) >> _32) * places) >> _32
        left = ((draw(key, index, LEFT) >> _32) * places) >> _32
        return top, left, draw(key, index, FLIP) & _1

    return crop_flip


def resized_crop_formula(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Return box(key, index, height, width, scale, ratio) → (top, left, box height, box width).

    torchvision's RandomResizedCrop: up to ten tries of a uniform share of the area and a log-uniform aspect ratio, then
    the largest centred box with an allowed ratio. `scale` and `ratio` are (low, high); key and index are uint64.
    """

    def resized_crop(
        key: Any, index: Any, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
    ) -> tuple[np.int64, np.int64, np.int64, np.int64]:
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
        box_height, box_width = height, width
        if width < ratio[0] * height:
            box_height = max(1, min(height, int(round(width / ratio[0]))))
        elif width > ratio[1] * height:
            box_width = max(1, min(width, int(round(height * ratio[1]))))
        top, left = (height - box_height) // 2, (width - box_width) // 2
        return np.int64(top), np.int64(left), np.int64(box_height), np.int64(box_width)

    return resized_crop


def enlargement(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where the pixels of a side enlarged to `size` look, for sides of 0 … `size`: int64 (size + 1, size) twice.

    Pixel i of a side of b pixels enlarged to S lies at x = ((2i + 1)·b − S) / 2S between the centres of the old ones,
    clamped to 0 … b − 1. The tables hold ⌊x⌋ and 2S·(x − ⌊x⌋), so that bilinear interpolation is whole numbers
    throughout: any language and device makes the same bits.
    """
    sides, places = np.arange(size + 1)[:, None], np.arange(size)[None, :]
    twice = np.clip((2 * places + 1) * sides - size, 0, np.maximum(sides - 1, 0) * 2 * size)
    return twice // (2 * size), twice % (2 * size)


def center_crop(height: int, width: int, size: int, test_resize: int) -> tuple[int, int, int, int]:
    """Return (top, left, side, side) of the centre square that is size/test_resize of the shorter side."""
    side = max(1, min(height, width) * size // test_resize)
    return (height - side) // 2, (width - side) // 2, side, side


def crop_flips(key: int, indices_N: np.ndarray, padding: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (top, left, flip) of many samples: int64, int64, bool, each (N,)."""
    with np.errstate(over="ignore"):  # the hash wants its overflow
        top, left, flip = crop_flip_formula(draw)(np.uint64(key), indices_N.astype(np.uint64), np.uint64(padding))
    return top.astype(np.int64), left.astype(np.int64), flip.astype(bool)


def flips(key: int, indices_N: np.ndarray) -> np.ndarray:
    """Return which of many samples are flipped: bool (N,)."""
    with np.errstate(over="ignore"):
        return (draw(np.uint64(key), indices_N.astype(np.uint64), FLIP) & _1).astype(bool)


def resized_crop_boxes(
    key: int, indices_N: np.ndarray, size: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> np.ndarray:
    """Return the boxes of many samples in images of `size` × `size`: int64 (N, 4), the same as resized_crop_box's.

    NumPy's exponential may differ from the compiled code's in the last bit; sides so near to one half that this could
    matter are left to the one formula, as is what no attempt has fitted.
    """
    boxes_N4 = np.empty((len(indices_N), 4), np.int64)
    open_M = np.arange(len(indices_N))
    doubtful: list[np.ndarray] = []
    for attempt in range(BOX_ATTEMPTS):
        with np.errstate(over="ignore"):
            first = BOX + np.uint64(4 * attempt)
            draws_4M = [draw(np.uint64(key), indices_N[open_M].astype(np.uint64), first + k) for k in (_0, _1, _2, _3)]
        share, shape = ((values >> _11).astype(np.float64) * 2.0**-53 for values in draws_4M[:2])
        area = size * size * (scale[0] + (scale[1] - scale[0]) * share)
        aspect = np.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * shape)
        sides_2M = np.sqrt(np.stack([area / aspect, area * aspect]))  # height, width
        near_half = (np.abs(sides_2M - np.floor(sides_2M) - 0.5) < 1e-9).any(0)
        sides_2M = np.rint(sides_2M).astype(np.int64)
        fits = ((sides_2M > 0) & (sides_2M <= size)).all(0) & ~near_half
        free_2M = (size + 1 - sides_2M[:, fits]).astype(np.uint64)
        for column, values, free in zip((0, 1), draws_4M[2:], free_2M, strict=True):
            boxes_N4[open_M[fits], column] = ((values[fits] >> _32) * free >> _32).astype(np.int64)
        boxes_N4[open_M[fits], 2:] = sides_2M[:, fits].T
        doubtful.append(open_M[near_half])
        open_M = open_M[~fits & ~near_half]
    for position in np.concatenate([*doubtful, open_M]):
        boxes_N4[position] = resized_crop_box(key, int(indices_N[position]), size, size, scale, ratio)
    return boxes_N4


def resized_crop_box(
    key: int, index: int, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of one sample's box in an image of the given size, pixels."""
    with np.errstate(over="ignore"):
        box = resized_crop_formula(draw)(np.uint64(key), np.uint64(index), height, width, scale, ratio)
    top, left, box_height, box_width = (int(number) for number in box)
    return top, left, box_height, box_width
