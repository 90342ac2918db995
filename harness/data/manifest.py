"""Manifests of prepared splits.

They record file digests, which are checked on opening.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.common.digest import canonical_json, sha256_file, sha256_json
from harness.common.escape import one_line
from harness.common.files import read_bounded, write_atomically

_log = logging.getLogger(__name__)

FORMAT = "harness.data/1"
SPLITS = ("train", "test")
_ANNOUNCED_BYTES = 1 << 30
_MOST_BYTES = 1 << 20
"""Larger files are no manifests."""


@dataclass(frozen=True)
class FileRecord:
    """Expected size and digest of one file."""

    sha256: str
    num_bytes: int


@dataclass(frozen=True)
class Manifest:
    """Record of one finished split. It is written last, so its split is complete."""

    name: str
    split: str
    num_samples: int
    content_digest: str
    """SHA-256 over stored pixels or JPEG bytes and label of every sample, in order. Equal for all loaders."""
    options: dict[str, Any]
    """Options that determine the stored images."""
    source: dict[str, Any]
    """Source of the images, for information. Not part of the digest."""
    files: dict[str, FileRecord]

    def save(self, path: Path) -> None:
        """Write the manifest atomically."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=2, sort_keys=True) + "\n"
        write_atomically(path, text.encode())

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read a manifest.

        Raises:
            FileNotFoundError: The file does not exist.
            ValueError: The file is not a manifest of this format. The message names the file.
        """
        try:
            content = json.loads(read_bounded(path, _MOST_BYTES))
            if content.pop("format") != FORMAT:
                raise KeyError("format")
            content["files"] = {name: FileRecord(**record) for name, record in content["files"].items()}
            manifest = cls(**content)
            manifest._check_types()
            return manifest
        except OSError:
            raise
        except Exception as error:  # json raises RecursionError for deep nesting
            problem = f"{type(error).__name__}: {one_line(error)}" if isinstance(error, KeyError) else one_line(error)
            raise ValueError(
                f"{path} is not a manifest of format {FORMAT} ({problem[:200]}); prepare the data again"
            ) from error

    def _check_types(self) -> None:
        """Check the types of all fields, since JSON holds any.

        Raises:
            TypeError: A field has another type. The message names the field.
        """
        for field in ("name", "split", "content_digest"):
            if not isinstance(getattr(self, field), str):
                raise TypeError(f"{field} is no text")
        for field in ("options", "source"):
            if not isinstance(getattr(self, field), dict):
                raise TypeError(f"{field} is no object")
        if type(self.num_samples) is not int or self.num_samples < 1:
            raise TypeError("num_samples is no positive integer")
        given = self.source.get("given", "")  # null if the data came from no source
        if not isinstance(given, str | None) or not isinstance(self.source.get("columns", {}), dict):
            raise TypeError("source.given is no text, or source.columns no object")
        for name, record in self.files.items():
            if not isinstance(record.sha256, str) or type(record.num_bytes) is not int or Path(name).name != name:
                raise TypeError(f"files.{name[:60]} has no sha256 and num_bytes, or is no file name")


def check_file(path: Path, record: FileRecord) -> None:
    """Check that a file matches its record.

    The size is checked always, the SHA-256 once. The verified size, modification time and inode are cached in a file
    beside it. An unchanged file is not hashed again.

    Raises:
        ValueError: The file is missing, or its size or digest differs.
    """
    _check_size(path, record)
    _check_digest(path, record)


def check_files(files: Mapping[Path, FileRecord], vouched: str = "") -> str:
    """Check several files as `check_file` does.

    Returns a token that proves it. The token is a SHA-256 over host, device, inode, size, modification time and
    expected digest of each file. If `vouched` equals it, another process of this machine has verified the unchanged
    files, and none is hashed again.

    Args:
        files: Expected record of each file.
        vouched: Token from another process.

    Raises:
        ValueError: A file is missing, or its size or digest differs.
    """
    for path, record in files.items():
        _check_size(path, record)
    # Compute the token before hashing. A file that changes in the meantime then invalidates it.
    word = _word(files)
    if word != vouched:
        for path, record in files.items():
            _check_digest(path, record)
    return word


def _check_size(path: Path, record: FileRecord) -> None:
    if not path.is_file():
        raise ValueError(f"{path} is missing, but its manifest exists; prepare the data again")
    size = path.stat().st_size
    if size != record.num_bytes:
        raise ValueError(
            f"{path} has {size} bytes, but its manifest says {record.num_bytes}: it is truncated or was replaced; "
            "prepare the data again"
        )


def _check_digest(path: Path, record: FileRecord) -> None:
    if _remembered(path) != {**_identity(path), "sha256": record.sha256}:
        size = record.num_bytes
        _log.log(logging.INFO if size >= _ANNOUNCED_BYTES else logging.DEBUG, f"Hashing {path}: {size:,} bytes")
        digest = sha256_file(path)
        if digest != record.sha256:
            raise ValueError(
                f"{path} was altered: its SHA-256 is {digest[:12]}…, but its manifest says {record.sha256[:12]}…; "
                "prepare the data again"
            )
        remember(path, digest)


def _word(files: Mapping[Path, FileRecord]) -> str:
    seen = [
        {**_identity(path), "device": path.stat().st_dev, "sha256": record.sha256} for path, record in files.items()
    ]
    return sha256_json({"host": socket.gethostname(), "files": seen})


def remember(path: Path, sha256: str) -> None:
    """Cache the SHA-256 of the file in its current state.

    Does nothing in a read-only directory. The file is then hashed at each opening.
    """
    with suppress(OSError):
        text = canonical_json({**_identity(path), "sha256": sha256}) + "\n"
        write_atomically(_note(path), text.encode())


def _remembered(path: Path) -> Any:
    # The note can be deleted at any time, so a damaged one is as good as none.
    with suppress(OSError, ValueError, RecursionError):
        return json.loads(read_bounded(_note(path), _MOST_BYTES))
    return None


def _note(path: Path) -> Path:
    return path.with_name(f".{path.name}.verified")


def _identity(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"num_bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}
