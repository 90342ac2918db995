"""Read IDX files, the format of MNIST and Fashion-MNIST: train-images-idx3-ubyte[.gz] etc."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from harness.data.readers.raw import (
    MOST_BYTES,
    MissingSourceError,
    RawSplit,
    SourceError,
    from_arrays,
    open_unpacked,
    reading,
)
from harness.data.spec import DataSpec


def is_idx_directory(path: Path) -> bool:
    """Return whether `path` has the training images as an IDX file."""
    return any((path / f"train-images-idx3-ubyte{ending}").exists() for ending in ("", ".gz"))


def read_idx(spec: DataSpec, path: Path, split: str) -> RawSplit:
    """Read one split of a directory of IDX files.

    Raises:
        MissingSourceError: A file is missing.
        SourceError: A file is damaged, or numbers of images and labels differ.
    """
    stem = {"train": "train", "test": "t10k"}[split]
    images_path = _idx_file(path, f"{stem}-images-idx3-ubyte")
    labels_path = _idx_file(path, f"{stem}-labels-idx1-ubyte")
    images, labels = _read_idx(images_path, 3), _read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise SourceError(f"{images_path} has {len(images)} images, but {labels_path} has {len(labels)} labels")
    return from_arrays(images, labels, [f"image {index} of {images_path}" for index in range(len(images))])


def _idx_file(path: Path, name: str) -> Path:
    for candidate in (path / name, path / f"{name}.gz"):
        if candidate.exists():
            return candidate
    raise MissingSourceError(f"{path} has no {name} or {name}.gz")


def _read_idx(path: Path, ndim: int) -> np.ndarray:
    """Read one file. Only as many bytes are unpacked as its header announces.

    Raises:
        SourceError: The file is damaged, or of another type.
    """
    # Read the header.
    start = 4 + 4 * ndim
    with reading(path), open_unpacked(path) as file:
        header = bytes(file.read(start))
        if header[:4] != bytes([0, 0, 8, ndim]):
            raise SourceError(f"{path} is not an IDX file of unsigned bytes with {ndim} dimensions")
        if len(header) < start:
            raise SourceError(f"{path} has a header of {len(header)} bytes, not {start}: truncated?")
        shape = tuple(int(size) for size in np.frombuffer(header[4:], ">u4"))
        needed = math.prod(shape)
        if needed > MOST_BYTES:
            raise SourceError(f"{path} has the shape {shape} in its header: {needed:,} bytes; not read")
        # Ask for one byte more, which also checks gzip's checksum.
        values = np.frombuffer(file.read(needed + 1), np.uint8)
    if values.size > needed:
        raise SourceError(f"{path} has more values than its header says: {shape}")
    if values.size < needed:
        raise SourceError(f"{path} has {values.size} values, but its header says {shape}: truncated?")
    return values.reshape(shape)
