"""Commit runs atomically as local directories.

Training therefore never waits for the tracking server.
"""

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.common.digest import canonical_json, sha256_file
from harness.common.escape import one_line
from harness.common.files import MOST_JSON_BYTES, fsync, reach, read_bounded
from harness.common.process import Process, own_process
from harness.lineage.nodes.absent_files import ABSENT_FILES, AbsentFile, read_absent_files
from harness.lineage.nodes.record import KINDS, LineageRecord, check_file_name

RECORD = "record.json"
SUMS = "SHA256SUMS"  # readable by `sha256sum -c`; it also covers record.json, which cannot contain its own digest
CONFIG = "config.json"
DETERMINANTS = "determinants.json"  # all inputs to the key, in canonical JSON: the SHA-256 of this file is the key
RESERVED = {RECORD, SUMS, ABSENT_FILES}  # artifacts must not have these names
_LFS_POINTER = b"version https://git-lfs"  # content of a large file in a Git clone without Git LFS
DELIVERED = ".delivered"  # beside the run directories, which never change after the commit


def json_bytes(data: Any) -> bytes:
    """Serialise to indented JSON; equal data give equal bytes."""
    return (json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def file_names(directory: Path) -> list[str]:
    """Return the relative names of all files below `directory`, sorted."""
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def read_sums(directory: Path) -> dict[str, str]:
    """Parse SHA256SUMS of a run directory.

    Returns:
        {file name: SHA-256}, including record.json.

    Raises:
        ValueError: The list is missing or malformed.
    """
    path = directory / SUMS
    try:
        # Not splitlines(): it accepts other line separators, so it would hide a flipped bit in "\n".
        lines = read_bounded(path, MOST_JSON_BYTES).decode().split("\n")
    except FileNotFoundError:
        raise ValueError(f"{directory} is not a complete run directory: it has no {SUMS}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} was altered: it is not a list of digests") from None
    if lines.pop() != "":
        raise ValueError(f"{path} was altered: it does not end in a line break")
    sums = {}
    for line in lines:
        digest, separator, name = line.partition("  ")
        if not separator or not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError(f"{path} was altered: {line!r:.90} is not '<sha256>  <file name>'")
        try:
            sums[check_file_name(name)] = digest
        except ValueError as error:
            raise ValueError(f"{path} was altered: {one_line(error)}") from None
    return sums


def check_digest(path: Path, expected: str) -> Path:
    """Return `path` if its content has the expected SHA-256.

    Raises:
        ValueError: The digest differs. The message has the file and both digests, or the remedy.
    """
    got = sha256_file(path)
    if got != expected:
        with open(path, "rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise ValueError(f"{path} is a Git LFS pointer instead of the file; run: git lfs pull")
        raise ValueError(f"{path} was altered: its SHA-256 is {got}, but {expected} was recorded")
    return path


def parse_record(path: Path) -> LineageRecord:
    """Return the record in a file, without a check of its digest.

    Raises:
        ValueError: The file is malformed or of another format. The message names it.
    """
    content = read_bounded(path, MOST_JSON_BYTES)
    try:
        return LineageRecord.from_json(content)
    except ValueError as error:
        raise ValueError(f"{path}: {one_line(error)}") from None


def read_record(directory: Path) -> LineageRecord:
    """Return the record of a committed run.

    The digest of record.json is checked, but not those of the artifacts.

    Raises:
        ValueError: record.json is missing, altered, malformed or of another format.
    """
    sums = read_sums(directory)
    path = directory / RECORD
    if RECORD not in sums or not path.is_file():
        raise ValueError(f"{directory} is not a complete run directory: it has no {RECORD}")
    check_digest(path, sums[RECORD])
    record = parse_record(path)
    if {name: digest for name, digest in sums.items() if name != RECORD} != record.files:
        raise ValueError(f"{directory / SUMS} was altered: its files and digests differ from those in {RECORD}")
    return record


def absent_files(directory: Path, record: LineageRecord) -> dict[str, AbsentFile]:
    """Return the files that `gc` or `bundle` removed from a committed run, by name.

    `deleted.json` lists them. An entry counts only if it has the recorded digest and the file does not exist.
    """
    absent = read_absent_files(directory)
    return {
        name: absent[name]
        for name, digest in record.files.items()
        if name in absent and absent[name].sha256 == digest and not (directory / name).is_file()
    }


def check_files(directory: Path, record: LineageRecord) -> None:
    """Check the digests of all artifacts of a committed run.

    Files that are absent on purpose are skipped.

    Raises:
        ValueError: A file is missing or altered. The message names the first such file.
    """
    absent = absent_files(directory, record)
    for name in record.files:
        if name not in absent:
            check_file(directory, record, name)


def check_file(directory: Path, record: LineageRecord, name: str) -> Path:
    """Check the digest of one committed file and return its path.

    Raises:
        ValueError: The file is altered, missing, or absent on purpose. The message gives the reason.
    """
    path = directory / name
    if path.is_file():
        return check_digest(path, record.files[name])
    if file := absent_files(directory, record).get(name):
        raise ValueError(f"{name} of {record.name} was {file}; make the run again or import it again")
    raise ValueError(f"{path} is missing; the record of {record.name} lists it")


def _bytes_below(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _os_error(error: Exception) -> OSError | None:
    """Return the OSError behind `error`, or None.

    safetensors has the errno only in the text of its own exception.
    """
    if isinstance(error, OSError):
        return error
    code = re.search(r"os error (\d+)", str(error))
    return OSError(int(code[1]), os.strerror(int(code[1]))) if code else None


def _explain(error: OSError, action: str, directory: Path, partial: Path) -> OSError:
    """Return an OSError with the same errno and a one-line message.

    The message has the action, directory, reason, bytes written, free space and advice.
    """
    written = _bytes_below(partial) if partial.is_dir() else 0
    nearest = next(p for p in (directory, *directory.parents) if p.exists())
    reason = os.strerror(error.errno) if error.errno else str(error)
    at = f" (at {error.filename})" if error.filename and not str(error.filename).startswith(str(directory)) else ""
    advice = {
        errno.ENOSPC: "free some space and start the same command again: it resumes",
        errno.EDQUOT: "free some space and start the same command again: it resumes",
        errno.EACCES: "make the directory writable, or choose another",
        errno.EROFS: "choose a directory on a writable file system",
    }.get(error.errno or 0, "the partly written run was removed")
    free = shutil.disk_usage(nearest).free
    return OSError(
        error.errno or errno.EIO,
        f"{action} in {directory}: {reason}{at}, after {written:,} bytes, with {free:,} bytes free there; {advice}",
    )


class LocalNodes:
    """Manage the committed runs below one directory.

    Each run has its own directory, named `<kind>-<first 16 digits of the key>`.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)

    def path(self, record: LineageRecord) -> Path:
        """Return the directory for a run, which may not exist yet."""
        return self.directory / f"{record.kind}-{record.key[:16]}"

    def find(self, key: str) -> Path | None:
        """Return the directory of the committed run with this key, or None.

        Raises:
            ValueError: The run's record was altered.
        """
        for kind in KINDS:
            directory = self.directory / f"{kind}-{key[:16]}"
            if (directory / RECORD).is_file() and read_record(directory).key == key:
                return directory
        return None

    def load(self, key: str) -> LineageRecord:
        """Return the record of the committed run with this key.

        Raises:
            LookupError: There is no such local run.
            ValueError: The record was altered.
        """
        return read_record(self._existing(key))

    def open_file(self, key: str, name: str) -> Path:
        """Check the digest of one file and return its path.

        Raises:
            LookupError: There is no such local run, or its record does not list the file.
            ValueError: The file was altered or is missing.
        """
        directory = self._existing(key)
        record = read_record(directory)
        if name not in record.files:
            raise LookupError(f"{record.name} has no file {name!r}; it has: {', '.join(sorted(record.files))}")
        return check_file(directory, record, name)

    def directories(self) -> Iterator[Path]:
        """Yield the directory of every committed run, sorted by name."""
        if self.directory.is_dir():
            for path in sorted(self.directory.iterdir()):
                if path.name.split("-")[0] in KINDS and (path / RECORD).is_file():
                    yield path

    def records(self) -> list[LineageRecord]:
        """Return the records of all committed runs, oldest first.

        Raises:
            ValueError: A record was altered.
        """
        return sorted((read_record(path) for path in self.directories()), key=lambda r: (r.started_ms, r.name, r.key))

    def commit(
        self,
        record: LineageRecord,
        write: Callable[[Path], None],
        determinants: Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> LineageRecord:
        """Write a run directory atomically.

        If the key already exists, nothing is written.

        Args:
            record: The run without file digests.
            write: Called with a temporary directory on the same file system. It writes the artifacts there. If it
                writes no config.json, the record's config is written.
            determinants: All inputs to the key, written to determinants.json. Their SHA-256 must be the key.
            files: Content of further artifacts by name.

        Returns:
            The committed record with the digests of all files.

        Raises:
            OSError: The disk is full or not writable. The message is one line with the path and the bytes written.
            ValueError: The key is not the digest of the determinants, or an artifact has a reserved name.
        """
        if (existing := self.find(record.key)) is not None:
            return read_record(existing)
        with self.room_for(record) as temporary:
            # Phase: write the artifacts, the settings and the inputs to the key
            write(temporary)
            for name, content in (files or {}).items():
                (temporary / name).write_bytes(content)
            settings = json_bytes(record.config)
            if not (temporary / CONFIG).exists():
                (temporary / CONFIG).write_bytes(settings)
            if determinants is not None:
                (temporary / DETERMINANTS).write_text(canonical_json(determinants))
            names = file_names(temporary)
            if taken := RESERVED & set(names):
                raise ValueError(f"{record.name}: the file names {sorted(taken)} are reserved")

            # Phase: hash every file
            record = replace(record, files={name: sha256_file(temporary / name) for name in names})
            if determinants is not None and record.files[DETERMINANTS] != record.key:
                raise ValueError(f"{record.name}: its key {record.key[:16]}… is not the digest of its determinants")

            # Phase: write the record and the digest list, then publish
            (temporary / RECORD).write_bytes(json_bytes(record.to_dict()))
            write_sums(temporary, record)
            as_read_back = replace(record, config=json.loads(settings))  # JSON turns tuples into lists
            return self._publish(as_read_back, temporary)

    @contextlib.contextmanager
    def room_for(self, record: LineageRecord) -> Iterator[Path]:
        """Yield an empty temporary directory in which to prepare a run.

        It is on the same file system as the committed runs. Delete it on exit, and delete those that killed processes
        left behind on this host.

        Raises:
            OSError: The disk is full or not writable. The message has the run, the path and the bytes written.
        """
        prefix, own = f".tmp-{self.path(record).name}.", own_process(os.getpid())
        for path in self.directory.glob(f"{prefix}*"):
            # A process commits one run at a time, so a directory with its own name is left over.
            maker = Process.of_suffix(path.name.removeprefix(prefix))
            if maker is not None and (maker.is_current or maker.alive is False):
                shutil.rmtree(path, ignore_errors=True)
        temporary = self.directory / f"{prefix}{own.suffix}"
        try:
            temporary.mkdir(parents=True)
            yield temporary
        except Exception as error:
            system_error = _os_error(error)
            if system_error is None:
                raise
            raise _explain(system_error, f"cannot commit {record.name!r}", self.directory, temporary) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def import_directory(self, downloaded: Path, record_digest: str) -> Path:
        """Commit a downloaded run. It must lie on the same file system.

        Args:
            downloaded: Directory with record.json and the artifacts. Files that the record does not list are deleted.
            record_digest: Trusted SHA-256 of record.json, from which all other digests follow.

        Returns:
            The directory of the committed run.

        Raises:
            ValueError: A file is missing or altered, or has a reserved name.
        """
        check_digest(downloaded / RECORD, record_digest)
        record = parse_record(downloaded / RECORD)
        if taken := RESERVED & record.files.keys():
            raise ValueError(f"{record.name}: the file names {sorted(taken)} are reserved")
        check_files(downloaded, record)
        for name in set(file_names(downloaded)) - set(record.files) - {RECORD, ABSENT_FILES}:
            (downloaded / name).unlink()
        write_sums(downloaded, record)
        self._publish(record, downloaded)
        return self.path(record)

    def _existing(self, key: str) -> Path:
        directory = self.find(key)
        if directory is None:
            raise LookupError(f"no run with key {key[:16]}… in {self.directory.resolve()}")
        return directory

    def _publish(self, record: LineageRecord, temporary: Path) -> LineageRecord:
        """Flush a run to disk and rename it atomically.

        Return the record that is then stored under its name.
        """
        for path in (*temporary.rglob("*"), temporary):
            fsync(path)
        final = self.path(record)
        reach("node-written")
        try:
            os.rename(temporary, final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # Another process committed the same key first. Equal keys mean equal results, so keep its run.
            found = read_record(final)
            if found.key != record.key:
                raise ValueError(f"{final} belongs to another key, {found.key}; move it away") from None
            return found
        fsync(self.directory)
        reach("node-committed")
        return record


def write_sums(directory: Path, record: LineageRecord) -> None:
    """Write SHA256SUMS for a run whose record.json is already written."""
    sums = {**record.files, RECORD: sha256_file(directory / RECORD)}
    (directory / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))
