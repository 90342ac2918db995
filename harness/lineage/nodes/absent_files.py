"""List the files of a committed node that are absent on purpose, and why; its record stays as it was.

They were deleted (`gc`), or left out when the node was given away (`bundle`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.common.files import write_atomically

ABSENT_FILES = "deleted.json"  # in the node's directory, so that it goes where the directory goes
FORMAT = "harness.deleted/1"


@dataclass(frozen=True)
class AbsentFile:
    """A file that a record lists and that was removed or left out on purpose."""

    sha256: str
    num_bytes: int
    deleted_at: str
    """ISO 8601, with the offset from UTC."""
    why: str

    def __str__(self) -> str:
        return f"removed on purpose on {self.deleted_at[:10]} ({self.why})"


def read_absent_files(directory: Path) -> dict[str, AbsentFile]:
    """Return the absent files of a node by name; ValueError when the list is there but cannot be read."""
    path = directory / ABSENT_FILES
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"{path} has format {content['format']!r}; this version reads {FORMAT}")
        return {name: AbsentFile(**file) for name, file in content["files"].items()}
    except FileNotFoundError:
        return {}
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} was altered: {error}; remove it") from None


def write_absent_files(directory: Path, absent: dict[str, AbsentFile]) -> None:
    """Write the list whole or not at all; it is on the disk when this returns, so that files may be deleted."""
    content = {"format": FORMAT, "files": {name: asdict(file) for name, file in sorted(absent.items())}}
    write_atomically(directory / ABSENT_FILES, json.dumps(content, indent=1, sort_keys=True).encode())
