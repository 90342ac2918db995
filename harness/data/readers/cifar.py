"""CIFAR-10 and CIFAR-100 as their authors give them, in the binary version (https://www.cs.toronto.edu/~kriz/cifar.html).

A record is the label's byte (CIFAR-100: the coarse label's, then the fine one's) and 3 · 32 · 32 pixels, plane by
plane. Read from the archive as it was downloaded, of which nothing is unpacked, or from the directory it holds.
"""

from __future__ import annotations

import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from harness.data.readers.raw import RawSplit, from_arrays
from harness.data.spec import DataSpec

_PIXELS = 3 * 32 * 32
_MOST_BYTES = 2**30
"""A larger file is not CIFAR's."""


@dataclass(frozen=True)
class _Layout:
    directory: str
    files: dict[str, tuple[str, ...]]
    label_bytes: int
    """The last of them is the label."""
    pickled: tuple[str, frozenset[str]]
    """Directory and files of the Python version."""


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
    """Whether `path` holds files of CIFAR's own, binary or pickled."""
    names = {entry.name for entry in path.iterdir() if entry.is_file()}
    binary = {name for layout in _LAYOUTS.values() for files in layout.files.values() for name in files}
    return bool(names & binary) or any(layout.pickled[1] <= names for layout in _LAYOUTS.values())


def read_cifar(spec: DataSpec, path: Path, split: str) -> RawSplit:
    """Read one split from the archive cifar-…-binary.tar.gz or from the directory it holds.

    Raises ValueError for the Python version, another data set's archive, a link in the place of a file, and files that
    are damaged or cut off.
    """
    layout = _LAYOUTS.get(spec.name)
    if layout is None:
        raise ValueError(f"{path} is CIFAR's; {spec.name} needs another --source")
    contents = _from_directory(layout, path, split) if path.is_dir() else _from_archive(layout, path, split)
    record = layout.label_bytes + _PIXELS
    for name, content in contents.items():
        if not content or len(content) % record:
            raise ValueError(f"{name} has {len(content)} bytes, no whole number of {record}-byte records: cut off?")
    where = [
        f"image {index} of {name}" for name, content in contents.items() for index in range(len(content) // record)
    ]
    records = np.frombuffer(b"".join(contents.values()), np.uint8).reshape(-1, record)
    images_NHWC = records[:, layout.label_bytes :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return from_arrays(images_NHWC, records[:, layout.label_bytes - 1], where)


def _from_directory(layout: _Layout, path: Path, split: str) -> dict[str, bytes]:
    names = [entry.name for entry in path.iterdir()]
    if layout.pickled[1] <= set(names):
        raise ValueError(_refused(layout, path))
    missing = [name for name in layout.files[split] if name not in names]
    if missing:
        raise FileNotFoundError(f"{path} has no {', '.join(missing)}; it holds {', '.join(sorted(names)[:8])}")
    return {str(path / name): (path / name).read_bytes() for name in layout.files[split]}


def _from_archive(layout: _Layout, path: Path, split: str) -> dict[str, bytes]:
    """Return the content of a split's files by name; only these are read, and nothing is written anywhere."""
    wanted = {PurePosixPath(layout.directory, name): f"{path}:{name}" for name in layout.files[split]}
    contents: dict[str, bytes] = {}
    seen: list[PurePosixPath] = []
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                seen.append(name)
                if name in wanted:
                    if not member.isreg() or member.size > _MOST_BYTES:
                        raise ValueError(f"{path}: {member.name} is a link or otherwise no file of CIFAR's; not read")
                    file = archive.extractfile(member)
                    assert file is not None
                    contents[wanted[name]] = file.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}; download it again") from error
    if any(name.parts[:1] == (layout.pickled[0],) for name in seen):
        raise ValueError(_refused(layout, path))
    missing = [str(name) for name, where in wanted.items() if where not in contents]
    if missing:
        found = ", ".join(map(str, seen[:4]))
        raise ValueError(f"{path} has no {', '.join(missing)}; it holds {found or 'nothing'}{' …' * (len(seen) > 4)}")
    return {where: contents[where] for where in wanted.values()}


def _refused(layout: _Layout, path: Path) -> str:
    archive = {"cifar-10-batches-bin": "cifar-10-binary.tar.gz"}.get(layout.directory, f"{layout.directory}.tar.gz")
    return (
        f"{path} is the Python version, which is pickled: loading a pickle can run any code in it, so none is ever "
        f"loaded here; download the binary version, {archive}"
    )
