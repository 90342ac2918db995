"""Compiled kernels of the FFCV loader.

They turn bytes of the mapped file into augmented pixels, in a single pass per sample. A row is (index, key, augment?),
uint64. `storage` is FFCV's (mapped file, sorted addresses, their sizes).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from ffcv.libffcv import imdecode, resize_crop
from numba import njit, prange

from harness.data import augment
from harness.data.ffcv.beton import JPG
from harness.data.spec import Augmentation, CropFlip, ResizedCropFlip, ZoomFlip

# No fastmath: boxes must equal those computed in plain Python.
_draw = njit(nogil=True, inline="always")(augment.draw)
_crop_flip = njit(nogil=True)(augment.crop_flip_formula(_draw))
_resized_crop = njit(nogil=True)(augment.resized_crop_formula(_draw))
_center_crop: Any = njit(nogil=True)(augment.center_crop)
_imdecode = njit(nogil=True)(imdecode)
_resize_crop = njit(nogil=True)(resize_crop)
_FLIP = augment.FLIP


def label_and_index(rows: Any, destination: Any, metadata: Any, storage: Any) -> Any:
    """Write (label, index) of every row into `destination`, int64 (N, 2)."""
    for position in range(len(rows)):
        index = rows[position, 0]
        destination[position, 0] = metadata[index]
        destination[position, 1] = np.int64(index)
    return destination[: len(rows)]


@cache
def decoder(
    augmentation: Augmentation, image_size: int, num_workers: int, scratch_bytes: int
) -> Callable[[Any, Any, Any, Any], Any]:
    """Return the function decode(rows, destination, metadata, storage) that FFCV calls.

    It is a thin wrapper. The kernel inside is compiled once per kind of augmentation and reused for all files.

    Args:
        augmentation: Augmentation of the data set.
        image_size: Height and width of the network's input, in pixels.
        num_workers: Threads of the kernel.
        scratch_bytes: Size of the largest decoded image.
    """
    # Small images: shifted crop and flip.
    if isinstance(augmentation, CropFlip):
        padding, may_flip = augmentation.padding, np.uint64(augmentation.flip)

        def decode_crop(rows: Any, destination: Any, metadata: Any, storage: Any) -> Any:
            _crop_flip_batch(rows, destination, metadata, storage[0], padding, may_flip)
            return destination[: len(rows)]

        return decode_crop
    # Small images: enlarged box and flip.
    if isinstance(augmentation, ZoomFlip):
        zoom_kernel = _zoom_kernel(parallel=num_workers > 1)
        scale, ratio, may_flip = augmentation.scale, augmentation.ratio, np.uint64(augmentation.flip)
        low, weight = augment.enlargement(image_size)

        def decode_zoom(rows: Any, destination: Any, metadata: Any, storage: Any) -> Any:
            zoom_kernel(rows, destination, metadata, storage[0], scale, ratio, low, weight, may_flip, num_workers)
            return destination[: len(rows)]

        return decode_zoom
    # Images of any size: decode, then resize a box.
    assert isinstance(augmentation, ResizedCropFlip)
    box_kernel = _resized_crop_kernel(parallel=num_workers > 1)
    scale, ratio, size = augmentation.scale, augmentation.ratio, augmentation.size
    may_flip, test_resize = np.uint64(augmentation.flip), augmentation.test_resize

    def decode_box(rows: Any, destination: Any, metadata: Any, storage: Any) -> Any:
        box_kernel(
            rows, destination, metadata, storage, scale, ratio, size, test_resize, may_flip, num_workers, scratch_bytes
        )
        return destination[: len(rows)]

    return decode_box


@njit(nogil=True, error_model="numpy")
def _crop_flip_batch(rows: Any, destination: Any, metadata: Any, file: Any, padding: Any, may_flip: Any) -> None:
    """Crop and flip one batch on a single thread, regardless of num_workers.

    A small image takes about 3 µs. A batch of 128 finishes before other threads would have started.
    """
    height, width, channels = destination.shape[1:]
    for position in range(len(rows)):
        index = rows[position, 0]
        down, right, flip = np.int64(0), np.int64(0), np.uint64(0)
        if rows[position, 2]:
            top, left, flip = _crop_flip(rows[position, 1], index, np.uint64(padding))
            down, right, flip = np.int64(top) - padding, np.int64(left) - padding, flip & may_flip
        start = np.int64(metadata[index]["data_ptr"])
        source = file[start : start + height * width * 3].reshape(height, width, 3)
        _copy_window(source, destination[position], down, right, flip)


@njit(nogil=True, error_model="numpy")
def _copy_window(source: Any, target: Any, down: Any, right: Any, flip: Any) -> None:
    """Copy the window of `source` that starts at (down, right).

    It is flipped if requested. Pixels outside `source` become black. RGB is reduced to the channels of `target`.
    """
    height, width, channels = target.shape
    first, last = max(0, -right), min(width, width - right)  # target columns inside the source
    for row in range(height):
        line = target[row]
        if not 0 <= row + down < height:
            line[:] = 0
            continue
        pixels = source[row + down]
        line[:first] = 0
        line[last:] = 0
        if channels == 3:
            for column in range(first, last):
                line[column, 0] = pixels[column + right, 0]
                line[column, 1] = pixels[column + right, 1]
                line[column, 2] = pixels[column + right, 2]
        else:
            for column in range(first, last):
                line[column, 0] = pixels[column + right, 0]
        if flip:
            _mirror(line)


@njit(nogil=True, error_model="numpy")
def _mirror(line: Any) -> None:
    """Reverse the pixels of one row (W, C) in place."""
    width, channels = line.shape
    for column in range(width // 2):
        for channel in range(channels):
            left = line[column, channel]
            line[column, channel] = line[width - 1 - column, channel]
            line[width - 1 - column, channel] = left


@cache
def _zoom_kernel(parallel: bool) -> Callable[..., None]:
    """Return a compiled kernel for raw images of one size."""

    @njit(nogil=True, parallel=parallel, error_model="numpy")
    def kernel(
        rows: Any,
        destination: Any,
        metadata: Any,
        file: Any,
        scale: Any,
        ratio: Any,
        low: Any,
        weight: Any,
        may_flip: Any,
        num_workers: Any,
    ) -> None:
        size = destination.shape[1]
        for worker in prange(num_workers):
            for position in range(worker, len(rows), num_workers):
                index, key, target = rows[position, 0], rows[position, 1], destination[position]
                # Locate the raw image in the mapped file.
                start = np.int64(metadata[index]["data_ptr"])
                pixels = file[start : start + size * size * 3].reshape(size, size, 3)
                if rows[position, 2]:
                    # Augment: enlarge a random box, and flip it.
                    top, left, height, width = _resized_crop(key, index, size, size, scale, ratio)
                    _enlarge(pixels[top : top + height, left : left + width], target, low, weight)
                    if _draw(key, index, _FLIP) & may_flip:
                        for row in range(size):
                            _mirror(target[row])
                else:
                    target[:] = pixels[:, :, : target.shape[2]]

    return kernel


@njit(nogil=True, error_model="numpy")
def _enlarge(source: Any, target: Any, low: Any, weight: Any) -> None:
    """Enlarge source (h, w, 3) bilinearly to target (S, S, C).

    The result is exact, with halves rounded up.
    """
    height, width = source.shape[:2]
    size, channels = target.shape[1:]
    one = 2 * size
    blended = np.empty((width, 3), np.int32)
    for row in range(size):
        # Blend two source rows.
        lower = np.int32(weight[height, row])
        above = source[low[height, row]]
        below = source[min(low[height, row] + 1, height - 1)]
        for column in range(width):
            for channel in range(3):
                blended[column, channel] = above[column, channel] * (one - lower) + below[column, channel] * lower
        for column in range(size):
            # Blend two columns of the result.
            left, nearer = low[width, column], weight[width, column]
            right = min(left + 1, width - 1)
            for channel in range(channels):
                total = blended[left, channel] * (one - nearer) + blended[right, channel] * nearer
                # Exact in float64: a quotient of integers this small cannot round up to the next integer.
                target[row, column, channel] = np.uint8((total + one * one // 2) / (one * one))


@cache
def _resized_crop_kernel(parallel: bool) -> Callable[..., None]:
    """Return a compiled kernel that decodes images and resizes boxes."""

    @njit(nogil=True, parallel=parallel, error_model="numpy")
    def kernel(
        rows: Any,
        destination: Any,
        metadata: Any,
        storage: Any,
        scale: Any,
        ratio: Any,
        size: Any,
        test_resize: Any,
        may_flip: Any,
        num_workers: Any,
        scratch_bytes: Any,
    ) -> None:
        file, addresses, sizes = storage
        for worker in prange(num_workers):
            # One scratch image per worker. FFCV's own decoder needs one per sample of every prefetched batch.
            scratch = np.empty(scratch_bytes, np.uint8)
            for position in range(worker, len(rows), num_workers):
                index, key = rows[position, 0], rows[position, 1]
                # Read or decode the stored image.
                entry = metadata[index]
                height, width = np.int64(entry["height"]), np.int64(entry["width"])
                start = entry["data_ptr"]
                num_bytes = sizes[np.searchsorted(addresses, start)]
                stored = file[np.int64(start) : np.int64(start + num_bytes)]
                if entry["mode"] == JPG:
                    _imdecode(stored, scratch, height, width, height, width, 0, 0, 1, 1, False, False)
                    pixels = scratch[: height * width * 3].reshape(height, width, 3)
                else:
                    pixels = stored.reshape(height, width, 3)
                # Resize a random or the centre box, and flip it.
                if rows[position, 2]:
                    top, left, box_height, box_width = _resized_crop(key, index, height, width, scale, ratio)
                else:
                    top, left, box_height, box_width = _center_crop(height, width, size, test_resize)
                _resize_crop(pixels, top, top + box_height, left, left + box_width, destination[position])
                if rows[position, 2] and _draw(key, index, _FLIP) & may_flip:
                    for row in range(size):
                        _mirror(destination[position, row])

    return kernel
