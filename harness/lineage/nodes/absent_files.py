"""List the files that a committed run lacks on purpose, with reasons.

`gc` deletes such files, and `bundle` leaves them out of a copy. The run's record still lists them and never changes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.common.files import read_json, write_atomically

ABSENT_FILES = "deleted.json"  # inside the run's directory, so that it is copied and moved together with the run
FORMAT = "harness.deleted/1"


@dataclass(frozen=True)
class AbsentFile:
    """One recorded file that was deleted or left out on purpose."""

    sha256: str
    num_bytes: int
    deleted_at: str
    """Time in ISO 8601 with the UTC offset."""
    why: str

    def __str__(self) -> str:
        return f"removed on purpose on {self.deleted_at[:10]} ({self.why})"


def read_absent_files(directory: Path) -> dict[str, AbsentFile]:
    """Return the files that a run lacks on purpose, by file name.

    Args:
        directory: Directory of the run.

    Returns:
        An empty dict if the run has no such list.

    Raises:
        ValueError: The list exists but is damaged or has another format.
    """
    path = directory / ABSENT_FILES
    try:
        content = read_json(path)
        if content["format"] != FORMAT:
            raise ValueError(f"{path} has format {content['format']!r:.60}; this version reads {FORMAT}")
        return {str(name): _checked(file) for name, file in content["files"].items()}
    except FileNotFoundError:
        return {}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} was altered: {error!r:.200}; delete this file") from None
    except ValueError as error:
        raise ValueError(f"{error}; delete this file") from None


def _checked(file: dict[str, Any]) -> AbsentFile:
    """Return one entry of the list; TypeError if a value has another type."""
    found = AbsentFile(**file)
    texts = (found.sha256, found.deleted_at, found.why)
    if not all(isinstance(text, str) for text in texts) or not isinstance(found.num_bytes, int):
        raise TypeError(f"an entry has a value of another type: {file!r:.100}")
    return found


def write_absent_files(directory: Path, absent: dict[str, AbsentFile]) -> None:
    """Write the list atomically and flush it to disk.

    Afterwards the caller may safely delete the files.
    """
    content = {"format": FORMAT, "files": {name: asdict(file) for name, file in sorted(absent.items())}}
    write_atomically(directory / ABSENT_FILES, json.dumps(content, indent=1, sort_keys=True).encode())
