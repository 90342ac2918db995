"""Bring images of any kind and size to RGB pixels of one size."""

from __future__ import annotations

from typing import Any

import numpy as np

from harness.common.optional import require


def rgb(image: Any) -> np.ndarray:
    """Return any Pillow image as RGB pixels, uint8 (H, W, 3).

    As in torchvision, transparency is dropped and EXIF orientation is ignored.
    """
    if image.mode.startswith("I;16"):
        gray = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(f"32-bit pixels (Pillow mode {image.mode}) have no defined range")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


def centre_square(pixels: np.ndarray, size: int) -> np.ndarray:
    """Return the centre square of an image, resized to `size` × `size` pixels, uint8 (size, size, 3).

    An image of this size does not change. Pillow's bilinear filter averages over all pixels of a larger image, in
    integers. The region is that of Resize(size) followed by CenterCrop(size).
    """
    require("PIL", "a change of the image size")
    from PIL import Image

    height, width = pixels.shape[:2]
    if (height, width) == (size, size):
        return pixels
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(np.ascontiguousarray(pixels[top : top + side, left : left + side]))
    return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))
