"""The record beside every prepared split: digests of its files, and the check that the files still have them."""

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
from harness.common.files import write_atomically

_log = logging.getLogger(__name__)

FORMAT = "harness.data/1"
SPLITS = ("train", "test")
_ANNOUNCED_BYTES = 1 << 30


@dataclass(frozen=True)
class FileRecord:
    """Size and digest that one file must have."""

    sha256: str
    num_bytes: int


@dataclass(frozen=True)
class Manifest:
    """One finished split of a data set; written last, so a split that has one is whole."""

    name: str
    split: str
    num_samples: int
    content_digest: str
    """SHA-256 over every sample's stored pixels or JPEG bytes and label, in order; the same for all loaders."""
    options: dict[str, Any]
    """Choices that shape the stored images."""
    source: dict[str, Any]
    """Where the images came from, for the reader; not part of the digest."""
    files: dict[str, FileRecord]

    def save(self, path: Path) -> None:
        """Write the manifest whole or not at all."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=2, sort_keys=True) + "\n"
        write_atomically(path, text.encode())

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read a manifest; FileNotFoundError if there is none, ValueError naming the file if it is not one of ours."""
        try:
            content = json.loads(path.read_text())
            if content.pop("format") != FORMAT:
                raise KeyError("format")
            content["files"] = {name: FileRecord(**record) for name, record in content["files"].items()}
            return cls(**content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a manifest of format {FORMAT} ({error}); prepare again") from error


def check_file(path: Path, record: FileRecord) -> None:
    """Raise ValueError unless the file is the one recorded: its size always, its SHA-256 once.

    A verified file is remembered beside it by size, modification time and inode, so opening it again costs nothing.
    """
    _check_size(path, record)
    _check_digest(path, record)


def check_files(files: Mapping[Path, FileRecord], vouched: str = "") -> str:
    """Check each file as `check_file` does; return a word that vouches for them.

    The word is a SHA-256 over host, device, inode, size, modification time and expected digest of each file. If
    `vouched` is the same word, a process of this machine has verified these very files, and none is hashed again.
    """
    for path, record in files.items():
        _check_size(path, record)
    word = _word(files)  # before they are hashed: one that is altered meanwhile is vouched for by nobody
    if word != vouched:
        for path, record in files.items():
            _check_digest(path, record)
    return word


def _check_size(path: Path, record: FileRecord) -> None:
    if not path.is_file():
        raise ValueError(f"{path} is missing though its manifest is there; prepare the data again")
    size = path.stat().st_size
    if size != record.num_bytes:
        raise ValueError(
            f"{path} has {size} bytes, its manifest says {record.num_bytes}: truncated, or not the file that was "
            "prepared; prepare the data again"
        )


def _check_digest(path: Path, record: FileRecord) -> None:
    if _remembered(path) != {**_identity(path), "sha256": record.sha256}:
        size = record.num_bytes
        _log.log(
            logging.INFO if size >= _ANNOUNCED_BYTES else logging.DEBUG, f"checking {path} once: {size / 1e6:,.1f} MB"
        )
        digest = sha256_file(path)
        if digest != record.sha256:
            raise ValueError(
                f"{path} was altered: its SHA-256 is {digest[:12]}…, its manifest says {record.sha256[:12]}…; "
                "prepare the data again"
            )
        remember(path, digest)


def _word(files: Mapping[Path, FileRecord]) -> str:
    seen = [
        {**_identity(path), "device": path.stat().st_dev, "sha256": record.sha256} for path, record in files.items()
    ]
    return sha256_json({"host": socket.gethostname(), "files": seen})


def remember(path: Path, sha256: str) -> None:
    """Note that the file as it stands now has this SHA-256. A read-only directory only costs time at each opening."""
    with suppress(OSError):
        text = canonical_json({**_identity(path), "sha256": sha256}) + "\n"
        write_atomically(_note(path), text.encode())


def _remembered(path: Path) -> Any:
    with suppress(OSError, ValueError):
        return json.loads(_note(path).read_text())
    return None


def _note(path: Path) -> Path:
    return path.with_name(f".{path.name}.verified")


def _identity(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"num_bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}
