"""Implement the formulas of harness/data/augment.py with plain integers."""

from __future__ import annotations

import math

WORD = 2**64
PHI = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
    return x ^ (x >> 31)


def draw(key: int, index: int, number: int) -> int:
    return mix((mix((key + PHI * (index + 1)) % WORD) + PHI * (number + 1)) % WORD)


def unit(word: int) -> float:
    return (word >> 11) / 2**53


def box(key: int, index: int, height: int, width: int, scale: tuple, ratio: tuple) -> tuple[int, int, int, int]:
    """Return the crop box of torchvision's RandomResizedCrop.get_params, from the keyed draws.

    Returns:
        Top, left, height and width in pixels.
    """
    for attempt in range(10):
        draws = [draw(key, index, 4 + 4 * attempt + offset) for offset in range(4)]
        target = height * width * (scale[0] + (scale[1] - scale[0]) * unit(draws[0]))
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = math.exp(low + (high - low) * unit(draws[1]))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return (draws[2] >> 32) * (height - h + 1) >> 32, (draws[3] >> 32) * (width - w + 1) >> 32, h, w
    if width / height < min(ratio):
        w, h = width, round(width / min(ratio))
    elif width / height > max(ratio):
        w, h = round(height * max(ratio)), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w
