"""Files of a SQLite store that was moved or copied to another directory.

MLflow records absolute paths. The harness keeps the files of a SQLite store in `mlruns` beside the database. So the
files of a moved store are found there by the end of their recorded path, and new files are written there. Nothing is
written at the old path. `tickets lineage relocate` writes the new paths into the database.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from harness.common.program import command

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run

    from harness.lineage.tracking.server import Server

_log = logging.getLogger(__name__)

FILES = "mlruns"
"""Directory beside a SQLite database that has the files of its runs."""

# All paths of files that MLflow records.
_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_BUSY_SECONDS = 30.0
_told: set[tuple[Path, Path]] = set()


def present_place(recorded: str, database: Path) -> Path | None:
    """Return where the files of a recorded location lie now, or None if the location is still right.

    Args:
        recorded: Location of an experiment's, run's or model's files, as MLflow recorded it.
        database: The SQLite file.
    """
    # Phase: split the location at the directory of files. Relative and remote locations do not move.
    old = _local(recorded)
    if old is None or FILES not in old.parts[:-1]:
        return None
    own = database.resolve().parent / FILES
    if old.is_relative_to(own):
        return None
    splits = [number for number, part in enumerate(old.parts[:-1]) if part == FILES]

    # Phase: prefer existing files beside the database, then existing files at the recorded location.
    for number in splits:
        if (found := own.joinpath(*old.parts[number + 1 :])).exists():
            return found
    if old.exists():
        return None

    # Phase: new files go beside the database, unless only the database was moved.
    number = splits[-1]
    moved_here = (own / old.parts[number + 1]).is_dir()
    left_there = Path(*old.parts[: number + 2]).is_dir()
    return own.joinpath(*old.parts[number + 1 :]) if moved_here or not left_there else None


def _local(recorded: str) -> Path | None:
    """Return the absolute path of a recorded location, or None if it has another form."""
    if recorded.startswith("file://"):
        return Path(unquote(urlsplit(recorded).path))
    return Path(recorded) if recorded.startswith("/") else None


def present_location(recorded: str, database: Path | None) -> str:
    """Return a location with its present path. A moved store is logged once.

    Args:
        recorded: The recorded location.
        database: The SQLite file. None returns the location as it is.
    """
    found = present_place(recorded, database) if database is not None else None
    if found is None or database is None:
        return recorded
    own = database.resolve().parent / FILES
    old = Path(str(_local(recorded)).removesuffix(str(found.relative_to(own))))
    if (old, own) not in _told:
        _told.add((old, own))
        _log.warning(
            f"{database} was moved: its files are used in {own}, though it records {old}. "
            f"`{command('lineage relocate')}` writes the new path into the database"
        )
    return str(found)


# ---------------------------------------------------------------------- sending


def send_directory(server: Server, run: Run, model: LoggedModel | None, directory: Path) -> None:
    """Copy all files of a directory to a run's logged model, or to the run's own artifacts if it has no model."""
    place = server.present(model.artifact_location if model is not None else run.info.artifact_uri)
    if place is not None:
        shutil.copytree(directory, place, dirs_exist_ok=True)
    elif model is not None:
        server.client().log_model_artifacts(model.model_id, str(directory))
    else:
        server.client().log_artifacts(run.info.run_id, str(directory))


def send_file(server: Server, run: Run, path: Path) -> None:
    """Copy one file to a run's own artifacts."""
    place = server.present(run.info.artifact_uri)
    if place is None:
        server.client().log_artifact(run.info.run_id, str(path))
        return
    place.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, place / path.name)


def send_model_file(server: Server, model: LoggedModel, content: bytes, name: str) -> None:
    """Write one file to a logged model."""
    place = server.present(model.artifact_location)
    if place is not None:
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
        return
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / name
        path.write_bytes(content)
        server.client().log_model_artifact(model.model_id, str(path))


def send_text(server: Server, run: Run, text: str, name: str) -> None:
    """Write a text to a run's own artifacts under a relative name."""
    place = server.present(run.info.artifact_uri)
    if place is None:
        server.client().log_text(run.info.run_id, text, name)
        return
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    (place / name).write_text(text, encoding="utf-8")


# ---------------------------------------------------------------------- relocate


@dataclass(frozen=True)
class Relocation:
    """Outcome of `relocate`: the number of changed paths, and the missing directories of models."""

    database: Path
    files: Path
    changed: int
    lost: tuple[str, ...]


def relocate(tracking_uri: str | None, database: Path | None) -> Relocation:
    """Write the present paths of all files into a moved SQLite database, in one transaction.

    Args:
        tracking_uri: The tracking server, for messages.
        database: Its SQLite file, or None for another server.

    Raises:
        ValueError: The tracking server is no SQLite file.
        LookupError: The file does not exist.
        OSError: The database cannot be written.
    """
    # Phase: refuse what has no recorded paths of this machine.
    if database is None:
        raise ValueError(
            f"{tracking_uri or 'no tracking server'} is no SQLite store: relocate changes sqlite:///… only. The files "
            "of a server belong to its own artifact store"
        )
    if not database.is_file():
        raise LookupError(f"there is no database {database}: give --tracking-uri sqlite:///PATH")

    # Phase: change each path whose files lie beside the database.
    changed, lost = 0, []
    try:
        with closing(sqlite3.connect(database, timeout=_BUSY_SECONDS)) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            for table, column in _COLUMNS:
                if column not in {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}:
                    continue
                rows = connection.execute(f"SELECT DISTINCT {column} FROM {table} WHERE {column} IS NOT NULL")
                for (recorded,) in rows.fetchall():
                    found = present_place(str(recorded), database)
                    if found is not None:
                        new = found.as_uri() if str(recorded).startswith("file://") else str(found)
                        connection.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", (new, recorded))
                        changed += 1
                        recorded = new
                    path = _local(str(recorded)) if table == "logged_models" else None  # others may have no files
                    if path is not None and not path.exists():
                        lost.append(str(path))
    except sqlite3.Error as error:
        raise OSError(f"cannot change {database}: {error}; stop what uses it, and try again") from None
    return Relocation(database, database.resolve().parent / FILES, changed, tuple(dict.fromkeys(lost)))
