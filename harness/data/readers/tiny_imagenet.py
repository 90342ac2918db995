"""Read original Tiny-ImageNet: tiny-imagenet-200.zip, or its unpacked directory.

Training images are in train/<wnid>/images. Validation images are in val/images, and val/val_annotations.txt has their
classes. A common script moves them to val/<wnid> or val/<wnid>/images. Both layouts are read. The test images have no
labels and are not used. The zip is read in place, without unpacking.
"""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from harness.data.readers.raw import (
    IMAGE_SUFFIXES,
    RawSample,
    RawSplit,
    SourceError,
    as_text,
    is_hidden,
    read_file,
    reading,
    visible,
)
from harness.data.spec import DataSpec

_ANNOTATIONS = "val/val_annotations.txt"
_MOST_BYTES = 2**24
"""Larger files cannot be images of 64×64 pixels and are refused."""


@dataclass(frozen=True)
class _Tree:
    """Files of the data set by their path under tiny-imagenet-200/."""

    where: str
    names: list[str]
    read: Callable[[str], bytes]

    def lines(self, name: str) -> list[str]:
        if name not in self.names:
            raise SourceError(f"{self.where} has no {name}")
        return [line for line in as_text(self.read(name), f"{self.where}:{name}").splitlines() if line.strip()]


def is_tiny_imagenet_directory(path: Path) -> bool:
    """Return whether `path` has the layout of tiny-imagenet-200/."""
    return (path / _ANNOTATIONS).is_file()


def read_tiny_imagenet(spec: DataSpec, path: Path, split: str) -> RawSplit:
    """Read one split. Classes are numbered in the order of sorted wnids.

    Samples are sorted by class, then by file name. The zip, its directory and an image folder of val/<wnid>/ therefore
    have the same content digest.

    Raises:
        SourceError: The zip is damaged or has links, or an image has no class or two.
    """
    # List the files and classes.
    tree = _directory(path) if path.is_dir() else _zip(path)
    wnids = sorted({wnid.strip() for wnid in tree.lines("wnids.txt")})
    classes = {wnid: label for label, wnid in enumerate(wnids)}
    images = [name for name in tree.names if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
    # Assign a class to each image of the split.
    if split == "train":
        found = [(name.split("/")[1], name) for name in images if name.startswith("train/")]
        unknown = sorted({wnid for wnid, _ in found} - set(classes))
        if unknown:
            raise SourceError(f"{tree.where} has train/{unknown[0]}, which its wnids.txt does not list")
    else:
        found = _annotated(tree, [name for name in images if name.startswith("val/")], classes)
    samples = sorted((classes[wnid], PurePosixPath(name).name, name) for wnid, name in found)

    def each() -> Iterator[RawSample]:
        for label, _, name in samples:
            yield RawSample(tree.read(name), label, f"{tree.where}:{name}")

    labels = np.array([label for label, _, _ in samples], np.int64)
    return RawSplit(labels, each, {"num_classes": len(classes)}, tuple(wnids))


def _annotated(tree: _Tree, images: list[str], classes: dict[str, int]) -> list[tuple[str, str]]:
    """Return (wnid, file) for all validation images.

    The class of an image comes from its line in val_annotations.txt. The directory of a sorted image must agree.

    Raises:
        SourceError: A line has no known class, an image has no line, a line has no image, or a directory disagrees.
    """
    # Read the class of each file name.
    wnids: dict[str, str] = {}
    for number, line in enumerate(tree.lines(_ANNOTATIONS), start=1):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in classes:
            raise SourceError(f"{tree.where}:{_ANNOTATIONS}, line {number}, has no class of wnids.txt: {line[:60]!r}")
        wnids[fields[0]] = fields[1]
    # Compare them with the images, and with the directories of sorted images.
    by_name = {PurePosixPath(name).name: name for name in images}
    for names, others, problem in (
        (by_name, wnids, f"has no line in {_ANNOTATIONS}"),
        (wnids, by_name, f"is missing, but {_ANNOTATIONS} lists it"),
    ):
        odd = [name for name in names if name not in others]
        if odd:
            shown = by_name.get(odd[0], f"val/images/{odd[0]}")
            raise SourceError(f"{tree.where}:{shown} {problem} (and {len(odd) - 1} more)")
    for name in images:
        wnid = wnids[PurePosixPath(name).name]
        directories = name.split("/")[1:-1]
        named = directories[:1] + [directory for directory in directories if directory in classes]
        if not set(named) <= {"images", wnid}:
            raise SourceError(f"{tree.where}:{name} has the class {wnid} in {_ANNOTATIONS}")
    if len(by_name) != len(images):
        twice = sorted(set(images) - set(by_name.values()))
        raise SourceError(f"{tree.where} has {twice[0]} a second time, as {by_name[PurePosixPath(twice[0]).name]}")
    return [(wnid, by_name[name]) for name, wnid in wnids.items()]


def _directory(path: Path) -> _Tree:
    names = [file.relative_to(path).as_posix() for file in visible(path.rglob("*"), path) if file.is_file()]
    return _Tree(str(path), names, lambda name: read_file(path / name, _MOST_BYTES))


def _zip(path: Path) -> _Tree:
    """Open the zip, and list its visible files.

    Raises:
        SourceError: The zip is damaged, or of another kind.
    """
    # Phase: list the entries.
    with reading(path):
        archive = zipfile.ZipFile(path)
        files = [entry for entry in archive.infolist() if not entry.is_dir()]
        entries = {entry.filename: entry for entry in files if not is_hidden(PurePosixPath(entry.filename))}
    root = next((name.removesuffix(_ANNOTATIONS) for name in entries if name.endswith(f"/{_ANNOTATIONS}")), None)
    if root is None:
        raise SourceError(f"{path} is not Tiny-ImageNet's zip: it has no tiny-imagenet-200/{_ANNOTATIONS}")

    # Phase: read an entry, at most as many bytes as it may have.
    def read(name: str) -> bytes:
        entry = entries[root + name]
        where = f"{path}: {entry.filename}"
        if stat.S_ISLNK(entry.external_attr >> 16) or entry.file_size > _MOST_BYTES:
            raise SourceError(f"{where} is a link, or too large for its kind of file; not read")
        with reading(where), archive.open(entry) as file:
            return file.read(_MOST_BYTES + 1)

    return _Tree(str(path), [name.removeprefix(root) for name in entries if name.startswith(root)], read)
