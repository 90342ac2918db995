"""Write and read FFCV's .beton format, version 2, with a fixed layout.

Any FFCV loader reads these files. The layout is: header, field descriptors, one metadata entry per sample, data pages,
allocation table. No sample crosses a page boundary.

FFCV's own writer is not used, for three reasons. It hangs if a worker raises. Its layout depends on the order of the
workers. Its "proportion" mode draws from an unseeded generator.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from types import TracebackType

import numpy as np

from harness.common.files import refuse_pipe

JPG, RAW = 0, 1  # ffcv.fields.rgb_image.IMAGE_MODES
_VERSION = 2
_INT_FIELD, _IMAGE_FIELD = 1, 2  # ffcv.types.TYPE_ID_HANDLER
SMALL_PAGE_BYTES, LARGE_PAGE_BYTES = 1 << 21, 1 << 23  # FFCV's minimum and default

_HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
_FIELD = np.dtype([("type_id", "<u1"), ("name", ("<u1", 16)), ("arguments", ("<u1", (1024,)))], align=True)
_IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
_SAMPLE = np.dtype([("f0", _IMAGE), ("f1", "<i8")], align=True)
_ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
_METADATA_START = _HEADER.itemsize + 2 * _FIELD.itemsize


class BetonWriter:
    """Writes images and labels in sequence. The file is valid only after `close`."""

    def __init__(self, path: Path, num_samples: int, page_bytes: int) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 (closed in close())
        self._page_bytes = page_bytes
        self._samples = np.zeros(num_samples, _SAMPLE)
        self._allocations = np.zeros(num_samples, _ALLOCATION)
        self._count = 0
        metadata_end = _METADATA_START + self._samples.nbytes
        self._data_start = -(-metadata_end // page_bytes) * page_bytes
        self._next = self._data_start

    def append(self, mode: int, height: int, width: int, data: bytes, label: int) -> None:
        """Write the next sample.

        Args:
            mode: RAW or JPG.
            height: Height in pixels.
            width: Width in pixels.
            data: Raw RGB pixels (height·width·3 bytes), or the bytes of a JPEG file.
            label: Class number.

        Raises:
            ValueError: The sample is larger than a page.
        """
        size = len(data)
        if size > self._page_bytes:
            raise ValueError(
                f"{size} bytes ({height}×{width} pixels) do not fit into a page of {self._page_bytes} bytes; "
                "lower --max-resolution or store it as JPEG"
            )
        # Start a new page if the sample does not fit into this one.
        left_in_page = -(self._next - self._data_start) % self._page_bytes
        if size > left_in_page:
            self._next += left_in_page
        self._samples[self._count] = ((mode, width, height, self._next), label)
        self._allocations[self._count] = (self._count, self._next, size)
        self._file.seek(self._next)
        self._file.write(data)
        self._next += size
        self._count += 1

    def close(self) -> None:
        """Write header, metadata and allocation table, and flush the file to disk.

        Raises:
            ValueError: The number of samples differs from the announced one.
        """
        if self._count != len(self._samples):
            raise ValueError(f"{self._count} samples were written, but {len(self._samples)} were announced")
        header = np.zeros(1, _HEADER)
        header[0] = (_VERSION, 2, self._page_bytes, self._count, self._next)
        fields = _fields()
        self._file.seek(self._next)
        self._file.write(self._allocations.tobytes())
        self._file.seek(0)
        self._file.write(header.tobytes() + fields.tobytes() + self._samples.tobytes())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> BetonWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()


def _fields() -> np.ndarray:
    """Return the descriptors of the two fields, an image and a label."""
    fields = np.zeros(2, _FIELD)
    for field, (type_id, name) in zip(fields, ((_IMAGE_FIELD, b"image"), (_INT_FIELD, b"label")), strict=True):
        field["type_id"] = type_id
        field["name"][: len(name)] = np.frombuffer(name, np.uint8)
    return fields


def read_sizes(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the heights and widths of all images, each uint16 (N,).

    Raises:
        ValueError: The file is not a complete .beton file.
    """
    samples, _ = _read_tables(path)
    return samples["f0"]["height"], samples["f0"]["width"]


def check_beton(path: Path, num_classes: int, image_size: int | None) -> None:
    """Check all that a loader relies on: places, sizes and labels of all samples.

    The loader's kernels are compiled without bounds. A wrong size would let them read foreign memory.

    Args:
        path: The file.
        num_classes: Number of classes. Labels are below it.
        image_size: Height and width of all images, which are stored raw. None: any, also as JPEG.

    Raises:
        ValueError: The file is not a complete .beton file of such images. The message names it and the first bad image.
    """
    # Read both tables, and bring the allocation table into the order of the samples.
    samples, allocations = _read_tables(path)
    images, end = samples["f0"], path.stat().st_size - allocations.nbytes
    by_place, order = np.argsort(allocations["ptr"]), np.argsort(images["data_ptr"])
    if not np.array_equal(allocations["ptr"][by_place], images["data_ptr"][order]):
        raise ValueError(f"{path} has images at other places than its allocation table; prepare the data again")
    sizes = np.zeros(len(samples), np.uint64)
    sizes[order] = allocations["size"][by_place]
    # Compare sizes in pixels and bytes.
    height, width = (images[side].astype(np.uint64) for side in ("height", "width"))
    raw = images["mode"] == RAW
    problems = {
        "lies outside the file": (images["data_ptr"] >= end) | (sizes > end - np.minimum(images["data_ptr"], end)),
        "has no pixels": (height == 0) | (width == 0) | (sizes == 0),
        "is stored in an unknown mode": ~raw & (images["mode"] != JPG),
        "has another number of bytes than pixels": raw & (height * width * 3 != sizes),
        f"has a label that is not in 0 to {num_classes - 1}": (samples["f1"] < 0) | (samples["f1"] >= num_classes),
    }
    if image_size is not None:
        problems[f"does not have {image_size}×{image_size} raw pixels"] = (
            ~raw | (height != image_size) | (width != image_size)
        )
    for problem, bad in problems.items():
        if bad.any():
            raise ValueError(f"{path}: image {int(bad.argmax())} {problem}; prepare the data again")
    # A JPEG has its own size. Compare that of the largest images, which determine the memory of the decoder.
    for index in {int(height.argmax()), int(width.argmax())}:
        if not raw[index]:
            _check_jpeg(path, index, samples[index]["f0"], int(sizes[index]))


def _check_jpeg(path: Path, index: int, image: np.void, size: int) -> None:
    from PIL import Image

    with open(path, "rb") as file:
        file.seek(int(image["data_ptr"]))
        content = file.read(size)
    try:
        found = Image.open(io.BytesIO(content)).size
    except Exception as error:  # Pillow raises many types
        raise ValueError(f"{path}: image {index} is no JPEG; prepare the data again") from error
    if found != (image["width"], image["height"]):
        raise ValueError(
            f"{path}: image {index} is a JPEG of {found[1]}×{found[0]} pixels, but the file says "
            f"{image['height']}×{image['width']}; prepare the data again"
        )


def _read_tables(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the metadata (N,) and the allocation table (N,).

    Raises:
        ValueError: The file is not a complete .beton file.
    """
    refuse_pipe(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        # Check the header before its numbers are used.
        header = np.frombuffer(file.read(_HEADER.itemsize).ljust(_HEADER.itemsize, b"\0"), _HEADER)[0]
        count, table = int(header["num_samples"]), int(header["alloc_table_ptr"])
        fields = np.frombuffer(file.read(2 * _FIELD.itemsize).ljust(2 * _FIELD.itemsize, b"\0"), _FIELD)
        same = all(np.array_equal(fields[part], _fields()[part]) for part in ("type_id", "name"))
        if header["version"] != _VERSION or header["num_fields"] != 2 or not same:
            raise ValueError(f"{path} is not an FFCV file of format {_VERSION} with an image and a label")
        if table + count * _ALLOCATION.itemsize != size or _METADATA_START + count * _SAMPLE.itemsize > table:
            raise ValueError(f"{path} has {size} bytes; it is truncated or was never finished")
        # Read the tables.
        samples = np.frombuffer(file.read(count * _SAMPLE.itemsize), _SAMPLE)
        file.seek(table)
        allocations = np.frombuffer(file.read(count * _ALLOCATION.itemsize), _ALLOCATION)
    if not count:
        raise ValueError(f"{path} has no images; prepare the data again")
    return samples, allocations


def read_raw(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read all images and labels of a file of raw images.

    All images must have the same size.

    Returns:
        Images, uint8 (N, H, W, 3), and labels, int64 (N,).
    """
    content = np.memmap(path, np.uint8, "r")
    count = int(content[: _HEADER.itemsize].view(_HEADER)[0]["num_samples"])
    samples = content[_METADATA_START : _METADATA_START + count * _SAMPLE.itemsize].view(_SAMPLE)
    height, width = int(samples["f0"]["height"][0]), int(samples["f0"]["width"][0])
    images_NHWC = np.empty((count, height, width, 3), np.uint8)
    for index, start in enumerate(samples["f0"]["data_ptr"]):
        images_NHWC[index] = content[start : start + height * width * 3].reshape(height, width, 3)
    return images_NHWC, samples["f1"].astype(np.int64)
