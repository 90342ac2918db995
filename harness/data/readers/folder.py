"""Read image folders: split/class/image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from harness.data.readers.raw import IMAGE_SUFFIXES, RawSample, RawSplit, check_same_classes, split_names
from harness.data.spec import DataSpec


def is_image_folder(path: Path) -> bool:
    """Return whether `path` has directories split/class."""
    splits = (entry for entry in path.iterdir() if entry.is_dir())
    return any(entry.is_dir() for split in splits for entry in split.iterdir())


def read_image_folder(spec: DataSpec, path: Path, split: str) -> RawSplit:
    """Read one split of an image folder. Classes are numbered in the order of sorted names.

    Raises:
        FileNotFoundError: A split has no directory.
        ValueError: The splits have different classes.
    """
    directory = _split_directory(spec, path, split)
    classes = _class_names(directory)
    for other in ("train", "test"):
        with_other = _split_directory(spec, path, other)
        check_same_classes(classes, _class_names(with_other), str(directory), str(with_other))
    files = [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((directory / name).rglob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES
    ]

    def samples() -> Iterator[RawSample]:
        for file, label in files:
            yield RawSample(file, label, str(file))

    return RawSplit(len(files), samples, {"num_classes": len(classes)})


def _split_directory(spec: DataSpec, path: Path, split: str) -> Path:
    names = split_names(spec, split)
    for name in names:
        if (path / name).is_dir():
            return path / name
    raise FileNotFoundError(f"{path} has no directory {' or '.join(names)} for the {split} split")


def _class_names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir() if entry.is_dir())
