"""Read image folders: split/class/image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from harness.data.readers.raw import (
    MissingSourceError,
    RawSample,
    RawSplit,
    SourceError,
    check_same_classes,
    class_directories,
    image_files,
    split_names,
)
from harness.data.spec import DataSpec


def is_image_folder(path: Path) -> bool:
    """Return whether `path` has directories split/class."""
    return any(class_directories(path / split) for split in class_directories(path))


def read_image_folder(spec: DataSpec, path: Path, split: str) -> RawSplit:
    """Read one split of an image folder. Classes are numbered in the order of sorted names.

    Raises:
        MissingSourceError: A split has no directory.
        SourceError: The splits have different classes, or are the same directory.
    """
    # Check the classes of both splits.
    directories = {name: _split_directory(spec, path, name) for name in ("train", "test")}
    train, test = directories.values()
    if train.samefile(test):
        raise SourceError(f"{train} and {test} are the same directory; the test images would be training images")
    directory, other = directories[split], test if split == "train" else train
    classes = class_directories(directory)
    check_same_classes(classes, class_directories(other), str(directory), str(other))
    _check_distinct([path / name for path in (train, test) for name in classes])
    files = [(file, label) for label, name in enumerate(classes) for file in image_files(directory / name)]

    def samples() -> Iterator[RawSample]:
        for file, label in files:
            yield RawSample(file, label, str(file))

    labels = np.array([label for _, label in files], np.int64)
    return RawSplit(labels, samples, {"num_classes": len(classes)}, tuple(classes))


def _check_distinct(directories: Iterable[Path]) -> None:
    """Check that no two of these directories are the same, for example because one is a link to the other.

    Raises:
        SourceError: Two are the same: a class would have another's images, or test images would be training images.
    """
    seen: dict[tuple[int, int], Path] = {}
    for directory in directories:
        status = directory.stat()
        first = seen.setdefault((status.st_dev, status.st_ino), directory)
        if first != directory:
            raise SourceError(f"{first} and {directory} are the same directory; give each class its own images")


def _split_directory(spec: DataSpec, path: Path, split: str) -> Path:
    names = split_names(spec, split)
    for name in names:
        if (path / name).is_dir():
            return path / name
    raise MissingSourceError(f"{path} has no directory {' or '.join(names)} for the {split} split")
