"""Read image folders: split/class/image, and class/image for a user's own data set."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from harness.data.readers.raw import (
    IMAGE_SUFFIXES,
    MissingSplitError,
    RawSample,
    RawSplit,
    SourceError,
    check_same_classes,
    class_directories,
    image_files,
    listed,
    split_names,
    visible,
)
from harness.data.spec import DataSpec

_log = logging.getLogger(__name__)


def is_image_folder(path: Path) -> bool:
    """Return whether `path` has directories split/class."""
    return any(class_directories(path / split) for split in class_directories(path))


def is_class_folder(path: Path) -> bool:
    """Return whether `path` has directories class/image, and none that names a split."""
    return any(image_files(path / name) for name in class_directories(path))


def read_image_folder(spec: DataSpec, path: Path, split: str) -> RawSplit:
    """Read one split of an image folder. Classes are numbered in the order of sorted names.

    The training split of a user's own data set can be the only one. It is then the whole folder, or its `train`.

    Raises:
        MissingSplitError: A split has no directory.
        SourceError: The splits have different classes, or are the same directory.
    """
    # A user's own data set needs no test split.
    if spec.raw.own and split == "train" and (only := _only_directory(spec, path)) is not None:
        _check_distinct([only / name for name in class_directories(only)])
        _tell_unused(path, [only])
        return _classes(only)
    # Check the classes of both splits.
    directories = {name: _split_directory(spec, path, name) for name in ("train", "test")}
    train, test = directories.values()
    if train.samefile(test):
        raise SourceError(f"{train} and {test} are the same directory; the test images would be training images")
    directory, other = directories[split], test if split == "train" else train
    classes = class_directories(directory)
    check_same_classes(classes, class_directories(other), str(directory), str(other))
    _check_distinct([path / name for path in (train, test) for name in classes])
    if spec.raw.own and split == "train":
        _tell_unused(path, [train, test])
    return _classes(directory)


def _tell_unused(path: Path, used: list[Path]) -> None:
    """Log the directories and files of a user's folder that are no part of the data set."""
    others = [name for name in class_directories(path) if path not in used and path / name not in used]
    if others:
        _log.info(f"note: directories of {path} that are not used: {listed(others)}")
    files = [
        str(file.relative_to(path))
        for one in used
        for file in visible(one.rglob("*"), one)
        if file.suffix.lower() not in IMAGE_SUFFIXES and file.is_file()
    ]
    if files:
        _log.info(f"note: files of {path} that are not used, because they do not end as images do: {listed(files)}")


def _only_directory(spec: DataSpec, path: Path) -> Path | None:
    """Return the directory of all images if the folder has no test split, else None."""
    names = class_directories(path)
    if {name.lower() for name in names} & {*split_names(spec, "test")}:
        return None
    if (path / "train").is_dir():
        return path / "train"
    # Directories with the same directories inside are splits of other names. They must not become classes.
    inside = [class_directories(path / name) for name in names]
    if len(names) > 1 and inside[0] and all(one == inside[0] for one in inside):
        raise SourceError(
            f"{path} has the directories {', '.join(names[:5])}, each with {', '.join(inside[0][:3])}; if they are "
            "splits, name them train and test"
        )
    return path


def _classes(directory: Path) -> RawSplit:
    """Return the images of the class directories in `directory`."""
    classes = class_directories(directory)
    files = [(file, label) for label, name in enumerate(classes) for file in image_files(directory / name)]

    def samples() -> Iterator[RawSample]:
        for file, label in files:
            yield RawSample(file, label, str(file))

    labels = np.array([label for _, label in files], np.int64)
    return RawSplit(labels, samples, {"num_classes": len(classes)}, tuple(classes))


def _check_distinct(directories: Iterable[Path]) -> None:
    """Check that no two of these directories share images, for example because one is a link to the other.

    Raises:
        SourceError: Two are the same, or one is inside another: a class would have another's images, or test images
            would be training images.
    """
    seen: dict[tuple[int, int], Path] = {}
    for directory in directories:
        status = directory.stat()
        first = seen.setdefault((status.st_dev, status.st_ino), directory)
        if first != directory:
            raise SourceError(f"{first} and {directory} are the same directory; give each class its own images")
    # Only a link can lead from one class into another.
    places = {directory.resolve(): directory for directory in seen.values()}
    for place, directory in places.items():
        for above in place.parents:
            if above in places:
                raise SourceError(
                    f"{directory} is inside of {places[above]}, by a link; give each class its own images"
                )


def _split_directory(spec: DataSpec, path: Path, split: str) -> Path:
    names = split_names(spec, split)
    for name in names:
        if (path / name).is_dir():
            return path / name
    found = class_directories(path)
    has = f"; it has {listed(found)}" if found else ""
    raise MissingSplitError(f"{path} has no directory {' or '.join(names)} for the {split} split{has}")
