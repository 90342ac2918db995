"""Define raw splits: undecoded samples in a fixed order.

All readers return them. Readers open files only by `reading`, `read_file`, `read_text` and `unpacked`. Every error is
then one line with the file's name, and no file takes more memory than its bound.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, TypeVar

import numpy as np

from harness.common.escape import for_terminal
from harness.common.files import read_bounded, refuse_pipe
from harness.common.optional import MissingLibraryError
from harness.data.spec import DataSpec

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2"}
MOST_BYTES = 2**28
"""Larger files, and archives that unpack to more, are refused. Archives that are read in place are not concerned."""
_MOST_LETTERS = 900
"""Longer messages are cut."""
_SYSTEM_NAMES = {
    *("__MACOSX", "__pycache__", "lost+found"),
    *("@eaDir", "@Recycle", "@Recently-Snapshot", "#recycle", "#snapshot"),
    *("$RECYCLE.BIN", "System Volume Information"),
}
"""Directories of archive programs, file systems, storage servers and Windows. They can hold thumbnails."""

AnyPath = TypeVar("AnyPath", bound=PurePath)


class SourceError(ValueError):
    """A raw source is damaged, incomplete or of another kind.

    The message names the file. It is one line, even if names in the source have control characters.
    """

    def __init__(self, message: str) -> None:
        line = for_terminal(message)
        super().__init__(line if len(line) <= _MOST_LETTERS else f"{line[:_MOST_LETTERS]}…")


class MissingSourceError(SourceError, FileNotFoundError):
    """A raw source, or a file that it needs, does not exist."""


class MissingSplitError(MissingSourceError):
    """A raw source lacks one of the splits, but not the other."""


@contextmanager
def reading(where: Path | str, remedy: str = "download it again") -> Iterator[None]:
    """Turn every exception of the block into one line that names the file.

    Parsers raise many types for damaged files. SourceError and MissingLibraryError pass unchanged.

    Args:
        where: The file, or part of one.
        remedy: End of the message.

    Raises:
        SourceError: The block raised an exception, or `where` is a pipe or device.
    """
    try:
        if isinstance(where, Path):
            refuse_pipe(where)
        yield
    except (SourceError, MissingLibraryError):
        raise
    except Exception as error:
        raise SourceError(f"{where} cannot be read: {reason(error)}; {remedy}") from error


def reason(error: BaseException) -> str:
    """Return the first line of an exception's message.

    Programming errors of a parser, such as KeyError, come with their type: their messages alone say little.
    """
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")[:200]
    is_message = type(error).__module__ != "builtins" or isinstance(error, ValueError | OSError | EOFError)
    return line if line and is_message else f"{type(error).__name__}: {line}".removesuffix(": ")


def read_file(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return a file's content.

    Raises:
        SourceError: The file cannot be read, is not a regular file, or has more than `most` bytes.
    """
    try:
        return read_bounded(path, most)
    except ValueError as error:
        raise SourceError(str(error)) from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {reason(error)}") from error


def as_text(content: bytes, where: Path | str) -> str:
    """Decode UTF-8, with or without a byte order mark.

    Raises:
        SourceError: The content is not UTF-8.
    """
    with reading(where, "save it as UTF-8, or download it again"):
        return content.decode("utf-8-sig")


def read_text(path: Path) -> str:
    """Return a text file's content.

    Raises:
        SourceError: The file cannot be read, or is not UTF-8.
    """
    return as_text(read_file(path), path)


def open_unpacked(path: Path) -> Any:
    """Open a file for reading. Gzip is unpacked, whatever the file's name is."""
    with open(path, "rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if is_gzip else open(path, "rb")


def unpacked(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a file that may be compressed by gzip.

    Raises:
        SourceError: The file is damaged, or it unpacks to more than `most` bytes. Never more is read.
    """
    with reading(path), open_unpacked(path) as file:
        content = bytes(file.read(most + 1))
    if len(content) > most:
        raise SourceError(f"{path} unpacks to more than {most:,} bytes; not read")
    return content


def visible(paths: Iterable[AnyPath], root: PurePath | None = None) -> list[AnyPath]:
    """Return the paths that are not hidden, sorted.

    Hidden are names that begin with a dot, and directories of the system such as __MACOSX and @eaDir. They come from
    editors, version control, archive programs and file servers, and are never classes or images.

    Args:
        paths: The paths.
        root: Directory whose own name does not count. Default: only the last name of each path counts.
    """
    return sorted(path for path in paths if not is_hidden(path.relative_to(root) if root else PurePath(path.name)))


def is_hidden(path: PurePath) -> bool:
    """Return whether a name in this relative path is hidden. See `visible`."""
    return any(name.startswith(".") or name in _SYSTEM_NAMES for name in path.parts)


def listed(names: Sequence[str], most: int = 5) -> str:
    """Return the first names as text, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return for_terminal(", ".join(names[:most]) + more)


def class_directories(directory: Path) -> list[str]:
    """Return the names of the visible directories in `directory`, sorted."""
    return [entry.name for entry in visible(directory.iterdir()) if entry.is_dir()]


def image_files(directory: Path) -> list[Path]:
    """Return all visible files under `directory` with the suffix of an image, sorted."""
    return [file for file in visible(directory.rglob("*"), directory) if file.suffix.lower() in IMAGE_SUFFIXES]


@dataclass(frozen=True)
class RawSample:
    """One undecoded sample."""

    image: np.ndarray | bytes | Path | Any
    """uint8 pixels (H, W) or (H, W, 3), the bytes of a file, its path, or a PIL image."""
    label: int
    where: str
    """Location of the sample, for messages."""


@dataclass(frozen=True)
class RawSplit:
    """One split of a raw data set."""

    labels: np.ndarray
    """Label of every sample, integers (N,), in the order of `samples`."""
    samples: Callable[[], Iterator[RawSample]]
    notes: dict[str, Any]
    """Additional facts for the manifest."""
    class_names: tuple[str, ...] = ()
    """Names of the classes by label, if the source has them."""
    num_source: int | None = None
    """Samples of the source, if only some of them were chosen."""

    @property
    def num_samples(self) -> int:
        """Return the number of samples."""
        return len(self.labels)


def from_arrays(images: np.ndarray, labels: np.ndarray, where: Sequence[str]) -> RawSplit:
    """Return a split from arrays in memory.

    Args:
        images: uint8 (N, H, W) or (N, H, W, 3).
        labels: Integers (N,).
        where: N locations, for messages.
    """

    def samples() -> Iterator[RawSample]:
        for image, label, name in zip(images, labels, where, strict=True):
            yield RawSample(image, int(label), name)

    return RawSplit(labels, samples, {})


def check_same_classes(train: Sequence[str], test: Sequence[str], train_name: str, test_name: str) -> None:
    """Check that both splits have the same sorted class names.

    Positions in this list are the labels.

    Raises:
        SourceError: The names differ.
    """
    if list(train) == list(test):
        return
    odd = sorted(set(train) ^ set(test))
    listed = ", ".join(odd[:3]) + (f" and {len(odd) - 3} more" if len(odd) > 3 else "")
    raise SourceError(
        f"{train_name} and {test_name} have different classes ({listed} in only one); labels would not be comparable"
    )


def split_names(spec: DataSpec, split: str) -> tuple[str, ...]:
    """Return the possible names of a raw split, preferred name first."""
    return ("train",) if split == "train" else tuple(dict.fromkeys((*spec.raw.test_splits, "test")))
