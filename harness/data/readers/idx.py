"""Read IDX files, the format of MNIST and Fashion-MNIST: train-images-idx3-ubyte[.gz] etc."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from harness.data.readers.raw import RawSplit, from_arrays
from harness.data.spec import DataSpec


def is_idx_directory(path: Path) -> bool:
    """Return whether `path` has the training images as an IDX file."""
    return any((path / f"train-images-idx3-ubyte{ending}").exists() for ending in ("", ".gz"))


def read_idx(spec: DataSpec, path: Path, split: str) -> RawSplit:
    """Read one split of a directory of IDX files.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, or numbers of images and labels differ.
    """
    stem = {"train": "train", "test": "t10k"}[split]
    images_path = _idx_file(path, f"{stem}-images-idx3-ubyte")
    labels_path = _idx_file(path, f"{stem}-labels-idx1-ubyte")
    images, labels = _read_idx(images_path, 3), _read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise ValueError(f"{images_path} has {len(images)} images, but {labels_path} has {len(labels)} labels")
    return from_arrays(images, labels, [f"image {index} of {images_path}" for index in range(len(images))])


def _idx_file(path: Path, name: str) -> Path:
    for candidate in (path / name, path / f"{name}.gz"):
        if candidate.exists():
            return candidate
    raise FileNotFoundError(f"{path} has no {name} or {name}.gz")


def _read_idx(path: Path, ndim: int) -> np.ndarray:
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if content[:3] != b"\0\0\x08" or content[3:4] != bytes([ndim]):
        raise ValueError(f"{path} is not an IDX file of unsigned bytes with {ndim} dimensions")
    shape = tuple(int(size) for size in np.frombuffer(content[4 : 4 + 4 * ndim], ">u4"))
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * ndim)
    if values.size != int(np.prod(shape)):
        raise ValueError(f"{path} has {values.size} values, but its header says {shape}: truncated?")
    return values.reshape(shape)
