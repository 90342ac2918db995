"""Read original Tiny-ImageNet: tiny-imagenet-200.zip, or its unpacked directory.

Training images are in train/<wnid>/images. All validation images are in val/images, and val/val_annotations.txt has
their classes. The test images have no labels and are not used. The zip is read in place, without unpacking.
"""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from harness.data.readers.raw import IMAGE_SUFFIXES, RawSample, RawSplit
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
            raise ValueError(f"{self.where} has no {name}")
        return [line for line in self.read(name).decode().splitlines() if line.strip()]


def is_tiny_imagenet_directory(path: Path) -> bool:
    """Return whether `path` has the layout of tiny-imagenet-200/."""
    return (path / _ANNOTATIONS).is_file()


def read_tiny_imagenet(spec: DataSpec, path: Path, split: str) -> RawSplit:
    """Read one split. Classes are numbered in the order of sorted wnids.

    Samples are sorted by class, then by name. The zip, its directory and an image folder of val/<wnid>/ therefore have
    the same content digest.

    Raises:
        ValueError: The zip is damaged or has links, or an image has no class.
    """
    # List the files and classes.
    tree = _directory(path) if path.is_dir() else _zip(path)
    classes = {wnid.strip(): label for label, wnid in enumerate(sorted(tree.lines("wnids.txt")))}
    images = [name for name in tree.names if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
    # Assign a class to each image of the split.
    if split == "train":
        found = [(name.split("/")[1], name) for name in images if name.startswith("train/")]
        unknown = sorted({wnid for wnid, _ in found} - set(classes))
        if unknown:
            raise ValueError(f"{tree.where} has train/{unknown[0]}, which its wnids.txt does not list")
    else:
        found = _annotated(tree, [name for name in images if name.startswith("val/")], classes)
    samples = sorted((classes[wnid], name) for wnid, name in found)

    def each() -> Iterator[RawSample]:
        for label, name in samples:
            yield RawSample(tree.read(name), label, f"{tree.where}:{name}")

    return RawSplit(len(samples), each, {"num_classes": len(classes)})


def _annotated(tree: _Tree, images: list[str], classes: dict[str, int]) -> list[tuple[str, str]]:
    """Return (wnid, file) for all validation images.

    Raises:
        ValueError: A line has no known class, an image has no line, or a line has no image.
    """
    wnids: dict[str, str] = {}
    for number, line in enumerate(tree.lines(_ANNOTATIONS), start=1):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in classes:
            raise ValueError(f"{tree.where}:{_ANNOTATIONS}, line {number}, has no class of wnids.txt: {line[:60]!r}")
        wnids[f"val/images/{fields[0]}"] = fields[1]
    for names, others, problem in (
        (images, wnids, f"has no line in {_ANNOTATIONS}"),
        (wnids, set(images), f"is missing, but {_ANNOTATIONS} lists it"),
    ):
        odd = [name for name in names if name not in others]
        if odd:
            raise ValueError(f"{tree.where}:{odd[0]} {problem} (and {len(odd) - 1} more)")
    return [(wnid, name) for name, wnid in wnids.items()]


def _directory(path: Path) -> _Tree:
    names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    return _Tree(str(path), names, lambda name: (path / name).read_bytes())


def _zip(path: Path) -> _Tree:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{path} cannot be read as a zip: {error}; download it again") from error
    entries = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}
    root = next((name.removesuffix(_ANNOTATIONS) for name in entries if name.endswith(f"/{_ANNOTATIONS}")), None)
    if root is None:
        raise ValueError(f"{path} is not Tiny-ImageNet's zip: it has no tiny-imagenet-200/{_ANNOTATIONS}")

    def read(name: str) -> bytes:
        entry = entries[root + name]
        if stat.S_ISLNK(entry.external_attr >> 16) or entry.file_size > _MOST_BYTES:
            raise ValueError(f"{path}: {entry.filename} is a link, or too large for its kind of file; not read")
        try:
            return archive.read(entry)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise ValueError(f"{path}: {entry.filename} cannot be read: {error}; download it again") from error

    return _Tree(str(path), [name.removeprefix(root) for name in entries if name.startswith(root)], read)
