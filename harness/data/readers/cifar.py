"""Read the original binary files of CIFAR-10 and CIFAR-100.

See https://www.cs.toronto.edu/~kriz/cifar.html. A record consists of label bytes and 3 · 32 · 32 pixels, plane by
plane. CIFAR-10 has one label byte. CIFAR-100 has the coarse label, then the fine label. The reader accepts the
downloaded archive, without unpacking it, or its unpacked directory.
"""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from harness.data.readers.raw import (
    MissingSourceError,
    RawSplit,
    SourceError,
    from_arrays,
    read_file,
    reading,
    unpacked,
)
from harness.data.spec import DataSpec

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Layout:
    directory: str
    files: dict[str, tuple[str, ...]]
    label_bytes: int
    """Label bytes per record. The last one is used."""
    pickled: tuple[str, frozenset[str]]
    """Directory and files of the Python version, for detecting it."""


_LAYOUTS = {
    "cifar10": _Layout(
        "cifar-10-batches-bin",
        {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)},
        1,
        ("cifar-10-batches-py", frozenset({"data_batch_1", "test_batch"})),
    ),
    "cifar100": _Layout(
        "cifar-100-binary",
        {"train": ("train.bin",), "test": ("test.bin",)},
        2,
        ("cifar-100-python", frozenset({"train", "test"})),
    ),
}


def is_cifar_directory(path: Path) -> bool:
    """Return whether `path` has CIFAR's original files, binary or pickled."""
    names = {entry.name for entry in path.iterdir() if entry.is_file()}
    binary = {name for layout in _LAYOUTS.values() for files in layout.files.values() for name in files}
    return bool(names & binary) or any(layout.pickled[1] <= names for layout in _LAYOUTS.values())


def read_cifar(spec: DataSpec, path: Path, split: str) -> RawSplit:
    """Read one split from the archive cifar-…-binary.tar.gz or its unpacked directory.

    Raises:
        MissingSourceError: The directory lacks files.
        SourceError: The source is the Python version or another data set, has links, or is damaged or truncated.
    """
    layout = _LAYOUTS.get(spec.name)
    if layout is None:
        raise SourceError(f"{path} is a source of CIFAR; {spec.name} needs another --source")
    contents = _from_directory(layout, path, split) if path.is_dir() else _from_archive(layout, path, split)
    record = layout.label_bytes + _PIXELS
    for name, content in contents.items():
        if not content or len(content) % record:
            raise SourceError(f"{name} has {len(content)} bytes, not a multiple of {record}-byte records: truncated?")
    where = [
        f"image {index} of {name}" for name, content in contents.items() for index in range(len(content) // record)
    ]
    records = np.frombuffer(b"".join(contents.values()), np.uint8).reshape(-1, record)
    images_NHWC = records[:, layout.label_bytes :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return from_arrays(images_NHWC, records[:, layout.label_bytes - 1], where)


def _from_directory(layout: _Layout, path: Path, split: str) -> dict[str, bytes]:
    names = [entry.name for entry in path.iterdir()]
    if layout.pickled[1] <= set(names):
        raise SourceError(_refused(layout, path))
    missing = [name for name in layout.files[split] if name not in names]
    if missing:
        raise MissingSourceError(f"{path} has no {', '.join(missing)}; it has {', '.join(sorted(names)[:8])}")
    return {str(path / name): read_file(path / name) for name in layout.files[split]}


def _from_archive(layout: _Layout, path: Path, split: str) -> dict[str, bytes]:
    """Return a split's file contents by name. Only these members are read, in memory."""
    # Read the split's members.
    wanted = {PurePosixPath(layout.directory, name): f"{path}:{name}" for name in layout.files[split]}
    contents: dict[str, bytes] = {}
    seen: list[PurePosixPath] = []
    content = unpacked(path)
    with reading(path), tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
        for member in archive:
            name = PurePosixPath(member.name)
            seen.append(name)
            if name in wanted:
                if not member.isreg():
                    raise SourceError(f"{path}: {member.name} is a link, or not a regular file of CIFAR; not read")
                file = archive.extractfile(member)
                assert file is not None
                contents[wanted[name]] = file.read()
    # Check that the archive is the binary version and complete.
    if any(name.parts[:1] == (layout.pickled[0],) for name in seen):
        raise SourceError(_refused(layout, path))
    missing = [str(name) for name, where in wanted.items() if where not in contents]
    if missing:
        found = ", ".join(map(str, seen[:4]))
        raise SourceError(f"{path} has no {', '.join(missing)}; it has {found or 'no files'}{' …' * (len(seen) > 4)}")
    return {where: contents[where] for where in wanted.values()}


def _refused(layout: _Layout, path: Path) -> str:
    archive = {"cifar-10-batches-bin": "cifar-10-binary.tar.gz"}.get(layout.directory, f"{layout.directory}.tar.gz")
    return (
        f"{path} is the Python version, which is pickled; pickles are never loaded, because they can run any code. "
        f"Download the binary version, {archive}"
    )
