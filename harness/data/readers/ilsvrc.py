"""Read original ImageNet (ILSVRC2012): the two tars, or unpacked directories.

Training images are one tar or directory per wnid. The 50,000 validation images are numbered and may lie in one
directory, not sorted by class. Their classes are then read from the first of these files that is found:

    val_annotations.txt                          lines of `<image> <wnid>`
    valprep.sh                                   the common script of `mv <image> <wnid>/` lines. It is not executed.
    LOC_val_solution.csv                         Kaggle's file
    imagenet_2012_validation_synset_labels.txt   TensorFlow's file: one wnid per line, by image number
    ILSVRC2012_devkit_t12[.tar.gz]               development kit: class IDs by image number, wnids from meta.mat

Tars are read in place, without unpacking.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

import numpy as np

from harness.common.logging import progress
from harness.data.readers.matlab import read_synsets
from harness.data.readers.raw import (
    IMAGE_SUFFIXES,
    MOST_BYTES,
    MissingSourceError,
    RawSample,
    RawSplit,
    SourceError,
    as_text,
    check_same_classes,
    class_directories,
    image_files,
    is_hidden,
    read_file,
    read_text,
    reading,
    reason,
    unpacked,
    visible,
)
from harness.data.spec import DataSpec

_TARS = {"train": "ILSVRC2012_img_train.tar", "test": "ILSVRC2012_img_val.tar"}
_DEVKIT = "ILSVRC2012_devkit_t12"
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_NUMBER = re.compile(r"_(\d{8})$")

Classes = Callable[[str], str]
"""Maps a validation image's file name to its wnid. Raises LookupError if it has none."""


@dataclass(frozen=True)
class _Image:
    """One image: a whole file, or part of a tar.

    In a tar, the image has `size` bytes from `offset` on.
    """

    wnid: str
    name: str
    path: Path
    offset: int = 0
    size: int = -1


def is_ilsvrc_directory(path: Path) -> bool:
    """Return whether `path` has original ImageNet.

    It has one of the tars, or a train directory and unsorted validation images.
    """
    return any((path / name).is_file() for name in _TARS.values()) or (
        (path / "train").is_dir() and _is_heap(path / "val")
    )


def read_ilsvrc(spec: DataSpec, path: Path, split: str) -> RawSplit:
    """Read one split of original ImageNet. Each split may be a tar or a directory.

    Classes are numbered in the order of sorted wnids. Samples are sorted by class, then by name. All layouts of the
    same images therefore have the same content digest.

    Raises:
        MissingSourceError: Images, or the classes of validation images, are missing.
        SourceError: A file is damaged, or the splits have different classes.
    """
    # Check the classes of both splits, even for the training split, so that errors appear before the long work.
    train_wnids = _train_wnids(path)
    images, note = _test_images(path)
    test_wnids = sorted({image.wnid for image in images})
    check_same_classes(train_wnids, test_wnids, f"the training images of {path}", "its validation images")
    if split == "train":
        images, note = _train_images(path)
    # Sort the images, and read each from its file or tar.
    labels = {wnid: label for label, wnid in enumerate(train_wnids)}
    images.sort(key=lambda image: (image.wnid, image.name))

    def samples() -> Iterator[RawSample]:
        with ExitStack() as stack:
            tars = {path: stack.enter_context(open(path, "rb")) for path in {i.path for i in images if i.size >= 0}}
            for image in images:
                content: Path | bytes = image.path
                where = str(image.path)
                if image.size >= 0:
                    tars[image.path].seek(image.offset)
                    content, where = tars[image.path].read(image.size), f"{image.path}:{image.name}"
                yield RawSample(content, labels[image.wnid], where)

    split_labels = np.array([labels[image.wnid] for image in images], np.int64)
    return RawSplit(split_labels, samples, {"num_classes": len(train_wnids), "layout": note}, tuple(train_wnids))


def _train_wnids(path: Path) -> list[str]:
    if (path / _TARS["train"]).is_file():
        with _tar(path / _TARS["train"]) as tar:
            return sorted({PurePosixPath(member.name).stem for member in _files(tar, path / _TARS["train"], (".tar",))})
    if (path / "train").is_dir():
        return class_directories(path / "train")
    raise MissingSourceError(f"{path} has neither {_TARS['train']} nor a directory named train")


def _train_images(path: Path) -> tuple[list[_Image], str]:
    file = path / _TARS["train"]
    if not file.is_file():
        return _in_class_directories(path / "train"), "train/<wnid>"
    images: list[_Image] = []
    with _tar(file) as outer:
        classes = list(_files(outer, file, (".tar",)))
        with progress(f"indexing {file.name}", len(classes), "classes") as bar:
            for member in classes:
                wnid, inside = PurePosixPath(member.name).stem, cast(BinaryIO, outer.extractfile(member))
                with _tar(file, inside) as inner:
                    images += [
                        _Image(wnid, PurePosixPath(m.name).name, file, member.offset_data + m.offset_data, m.size)
                        for m in _files(inner, file, tuple(IMAGE_SUFFIXES), member.size)
                    ]
                bar.update()
    return images, file.name


def _test_images(path: Path) -> tuple[list[_Image], str]:
    file, directory = path / _TARS["test"], path / "val"
    if file.is_file():
        with _tar(file) as tar:
            members = list(_files(tar, file, tuple(IMAGE_SUFFIXES)))
        heap = [(PurePosixPath(m.name).name, file, m.offset_data, m.size) for m in members]
    elif _is_heap(directory):
        heap = [(entry.name, entry, 0, -1) for entry in visible(directory.iterdir()) if _is_image(entry)]
    elif directory.is_dir():
        return _in_class_directories(directory), "val/<wnid>"
    else:
        raise MissingSourceError(f"{path} has neither {_TARS['test']} nor a directory named val")
    classes, file = validation_classes(path)
    return [_Image(_class_of(classes, name, file), name, *place) for name, *place in heap], file.name  # type: ignore[arg-type]


def _class_of(classes: Classes, name: str, file: Path) -> str:
    try:
        return classes(name)
    except LookupError:
        raise SourceError(f"{file} has no class for {name}") from None


def _in_class_directories(directory: Path) -> list[_Image]:
    return [
        _Image(wnid, file.name, file) for wnid in class_directories(directory) for file in image_files(directory / wnid)
    ]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _is_heap(directory: Path) -> bool:
    """Return whether images lie directly in `directory`, as after unpacking."""
    return directory.is_dir() and any(_is_image(entry) for entry in visible(directory.iterdir()))


def _tar(path: Path, file: BinaryIO | None = None) -> tarfile.TarFile:
    with reading(path):
        return tarfile.open(path, "r:", fileobj=file)


def _files(
    tar: tarfile.TarFile, path: Path, suffixes: tuple[str, ...], num_bytes: int | None = None
) -> Iterator[tarfile.TarInfo]:
    """Yield the regular files with one of these suffixes.

    Args:
        tar: The open tar.
        path: Its file, for messages.
        suffixes: Lower-case suffixes.
        num_bytes: Size of `tar`, if it lies inside the tar `path`.

    Raises:
        SourceError: A member is a link, or the tar is truncated or damaged.
    """
    end = path.stat().st_size if num_bytes is None else num_bytes
    with reading(path):
        for member in tar:
            if not member.name.lower().endswith(suffixes) or member.isdir() or is_hidden(PurePosixPath(member.name)):
                continue
            if not member.isreg():
                raise SourceError(f"{path}: {member.name} is a link, or not a regular file; not read")
            if member.offset_data + member.size > end:
                raise SourceError(f"{path} is truncated at {member.name}; download it again")
            if member.size > MOST_BYTES and ".tar" not in suffixes:
                raise SourceError(f"{path}: {member.name} has {member.size:,} bytes; at most {MOST_BYTES:,} are read")
            yield member


def validation_classes(path: Path) -> tuple[Classes, Path]:
    """Read the validation classes from the first known file in `path`.

    Returns:
        The lookup, and the file.

    Raises:
        MissingSourceError: There is no such file. The message lists the known names.
        SourceError: The file cannot be parsed.
    """
    for name, read in _MAPPINGS.items():
        for directory in (path, path / "val"):
            if (directory / name).exists():
                return read(directory / name), directory / name
    raise MissingSourceError(
        f"the validation images of {path} are not sorted by class, and no file lists their classes; add one of "
        f"{', '.join(_MAPPINGS)}"
    )


def _by_number(wnids: list[str]) -> Classes:
    """Return a lookup of classes by the number in the image's name.

    The first entry is the class of ILSVRC2012_val_00000001.
    """

    def wnid(name: str) -> str:
        number = _NUMBER.search(PurePosixPath(name).stem)
        if number is None or int(number[1]) < 1:
            raise LookupError(name)
        return wnids[int(number[1]) - 1]

    return wnid


def _by_name(pairs: list[tuple[str, str]], path: Path) -> Classes:
    if not pairs:
        raise SourceError(f"{path} lists no image with its wnid")
    wnids = {PurePosixPath(name).stem: wnid for name, wnid in pairs}
    return lambda name: wnids[PurePosixPath(name).stem]


def _pairs(pattern: str) -> Callable[[Path], Classes]:
    """Return a reader of text files in which `pattern` matches (image, wnid)."""
    return lambda path: _by_name(re.findall(pattern, read_text(path), re.M), path)


def _wnid_a_line(path: Path) -> Classes:
    wnids = read_text(path).split()
    for number, wnid in enumerate(wnids, start=1):
        if not re.fullmatch(r"n\d{8}", wnid):
            raise SourceError(f"{path}, line {number}, is no wnid: {wnid!r:.60}")
    return _by_number(wnids)


def _devkit_directory(path: Path) -> Classes:
    data = path / "data"
    if not (data / "meta.mat").is_file() or not (data / _GROUND_TRUTH).is_file():
        raise SourceError(f"{path} is not the development kit: it lacks data/meta.mat or data/{_GROUND_TRUTH}")
    return _devkit(read_file(data / "meta.mat"), read_text(data / _GROUND_TRUTH), path)


def _devkit_archive(path: Path) -> Classes:
    contents: dict[str, bytes] = {}
    archive = unpacked(path)
    with reading(path), tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
        for member in tar:
            name = PurePosixPath(member.name)
            if name.name in ("meta.mat", _GROUND_TRUTH) and member.isreg():
                contents[name.name] = cast(BinaryIO, tar.extractfile(member)).read()
    if len(contents) != 2:
        raise SourceError(f"{path} is not the development kit: it lacks data/meta.mat or data/{_GROUND_TRUTH}")
    return _devkit(contents["meta.mat"], as_text(contents[_GROUND_TRUTH], f"{path}:{_GROUND_TRUTH}"), path)


def _devkit(meta: bytes, ground_truth: str, path: Path) -> Classes:
    """Join the ground truth, given as ILSVRC2012_ID, with the wnids in meta.mat.

    meta.mat is in MATLAB's format and has no pickle.
    """
    try:
        wnids = read_synsets(meta)
        return _by_number([wnids[int(number)] for number in ground_truth.split()])
    except (ValueError, KeyError) as error:
        raise SourceError(f"{path}: meta.mat and {_GROUND_TRUTH} do not match: {reason(error)}") from error


_MAPPINGS: dict[str, Callable[[Path], Classes]] = {
    "val_annotations.txt": _pairs(r"^(\S+)\s+(n\d{8})\b"),
    "valprep.sh": _pairs(r"^\s*mv\s+(\S+)\s+(n\d{8})/?\s*$"),
    "LOC_val_solution.csv": _pairs(r"^([^,\s]+),\s*(n\d{8})\b"),
    "imagenet_2012_validation_synset_labels.txt": _wnid_a_line,
    _DEVKIT: _devkit_directory,
    f"{_DEVKIT}.tar.gz": _devkit_archive,
}
