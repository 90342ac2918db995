"""Lineage nodes as local directories, each written whole or not at all; training never waits for a server."""

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
from harness.common.files import fsync, reach
from harness.common.process import Process
from harness.lineage.nodes.absent_files import ABSENT_FILES, AbsentFile, read_absent_files
from harness.lineage.nodes.record import KINDS, LineageRecord, check_file_name

RECORD = "record.json"
SUMS = "SHA256SUMS"  # in the form of `sha256sum -c`, and it covers record.json too, which cannot hold its own digest
CONFIG = "config.json"
DETERMINANTS = "determinants.json"  # what the key is the digest of: canonical JSON, so the file's SHA-256 is the key
RESERVED = {RECORD, SUMS, ABSENT_FILES}  # no artifact is called so
DELIVERED = ".delivered"  # beside the nodes, so that a committed directory is never touched again


def json_bytes(data: Any) -> bytes:
    """Return readable JSON with sorted keys, equal bytes for equal data."""
    return (json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def file_names(directory: Path) -> list[str]:
    """Return the relative names of all files below `directory`, sorted."""
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def read_sums(directory: Path) -> dict[str, str]:
    """Return {file name: SHA-256} as SHA256SUMS lists them; ValueError when it is missing or no such list."""
    path = directory / SUMS
    try:
        lines = path.read_bytes().decode().split("\n")  # splitlines() also splits at what a flipped bit makes of \n
    except FileNotFoundError:
        raise ValueError(f"{directory} is not a whole lineage node: it has no {SUMS}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} was altered: it is no list of digests") from None
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
            raise ValueError(f"{path} was altered: {error}") from None
    return sums


def check_digest(path: Path, expected: str) -> Path:
    """Return `path` if its content has the SHA-256 `expected`; ValueError naming file, got and expected otherwise."""
    got = sha256_file(path)
    if got != expected:
        raise ValueError(f"{path} was altered: its SHA-256 is {got}, recorded was {expected}")
    return path


def read_record(directory: Path) -> LineageRecord:
    """Return the record of a committed directory, its own digest checked (not those of the artifacts).

    Raises ValueError when record.json is missing, altered, foreign or of a newer format.
    """
    sums = read_sums(directory)
    path = directory / RECORD
    if RECORD not in sums or not path.is_file():
        raise ValueError(f"{directory} is not a whole lineage node: it has no {RECORD}")
    check_digest(path, sums[RECORD])
    record = LineageRecord.from_json(path.read_bytes())
    if {name: digest for name, digest in sums.items() if name != RECORD} != record.files:
        raise ValueError(f"{directory / SUMS} was altered: it does not list the files that {RECORD} lists")
    return record


def absent_files(directory: Path, record: LineageRecord) -> dict[str, AbsentFile]:
    """Return the files of a committed directory that are not there on purpose, by name."""
    absent = read_absent_files(directory)
    return {
        name: absent[name]
        for name, digest in record.files.items()
        if name in absent and absent[name].sha256 == digest and not (directory / name).is_file()
    }


def check_files(directory: Path, record: LineageRecord) -> None:
    """Check every artifact of a committed directory against its digest; ValueError naming the first that differs.

    What is absent on purpose cannot be checked and is no error.
    """
    absent = absent_files(directory, record)
    for name in record.files:
        if name not in absent:
            check_file(directory, record, name)


def check_file(directory: Path, record: LineageRecord, name: str) -> Path:
    """Return the path of one file of a committed directory; ValueError when it is altered or missing, saying why."""
    path = directory / name
    if path.is_file():
        return check_digest(path, record.files[name])
    if file := absent_files(directory, record).get(name):
        raise ValueError(f"{name} of {record.name} was {file}; it has to be made, or imported, again")
    raise ValueError(f"{path} is missing; the record of {record.name} lists it")


def _bytes_below(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _os_error(error: Exception) -> OSError | None:
    """Return the operating system's error behind `error`; safetensors wraps it into a message of its own."""
    if isinstance(error, OSError):
        return error
    code = re.search(r"os error (\d+)", str(error))
    return OSError(int(code[1]), os.strerror(int(code[1]))) if code else None


def _explain(error: OSError, action: str, directory: Path, partial: Path) -> OSError:
    """Return an OSError of the same number whose one line says what could not be written where, with bytes."""
    written = _bytes_below(partial) if partial.is_dir() else 0
    nearest = next(p for p in (directory, *directory.parents) if p.exists())
    reason = os.strerror(error.errno) if error.errno else str(error)
    at = f" (at {error.filename})" if error.filename and not str(error.filename).startswith(str(directory)) else ""
    advice = {
        errno.ENOSPC: "free some space and start the same command again: it continues",
        errno.EDQUOT: "free some space and start the same command again: it continues",
        errno.EACCES: "make the directory writable, or choose another",
        errno.EROFS: "choose a directory on a writable file system",
    }.get(error.errno or 0, "nothing of this node was kept")
    free = shutil.disk_usage(nearest).free
    return OSError(
        error.errno or errno.EIO,
        f"{action} in {directory}: {reason}{at}, after {written:,} bytes, with {free:,} bytes free there; {advice}",
    )


class LocalNodes:
    """The committed nodes below one directory, as `<kind>-<first 16 digits of the key>` each."""

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)

    def path(self, record: LineageRecord) -> Path:
        """Return the directory that is, or will be, the node of `record`."""
        return self.directory / f"{record.kind}-{record.key[:16]}"

    def find(self, key: str) -> Path | None:
        """Return the directory of the committed node with this key, or None."""
        for kind in KINDS:
            directory = self.directory / f"{kind}-{key[:16]}"
            if (directory / RECORD).is_file() and read_record(directory).key == key:
                return directory
        return None

    def load(self, key: str) -> LineageRecord:
        """Return the record of the committed node with this key; LookupError when there is none."""
        return read_record(self._existing(key))

    def open_file(self, key: str, name: str) -> Path:
        """Return the path of a node's file after checking its digest.

        Raises LookupError when there is no such node or file, ValueError (file, got, expected) when it was altered.
        """
        directory = self._existing(key)
        record = read_record(directory)
        if name not in record.files:
            raise LookupError(f"{record.name} has no file {name!r}; it has: {', '.join(sorted(record.files))}")
        return check_file(directory, record, name)

    def directories(self) -> Iterator[Path]:
        """Yield the directory of every committed node, sorted by name."""
        if self.directory.is_dir():
            for path in sorted(self.directory.iterdir()):
                if path.name.split("-")[0] in KINDS and (path / RECORD).is_file():
                    yield path

    def records(self) -> list[LineageRecord]:
        """Return the records of all committed nodes, oldest first; ValueError on an altered one."""
        return sorted((read_record(path) for path in self.directories()), key=lambda r: (r.started_ms, r.name, r.key))

    def commit(
        self, record: LineageRecord, write: Callable[[Path], None], determinants: Mapping[str, Any] | None = None
    ) -> LineageRecord:
        """Write a node whole or not at all, and return its record with the digests of its files.

        `write(directory)` makes the artifact files in a temporary directory of the same file system; config.json is
        added unless it writes one, and determinants.json if `determinants`, whose digest the key is, are given. An
        existing key is not written again: its record is returned.
        Raises OSError (one line with path and bytes) when the disk is full or not writable, ValueError when the key is
        not the digest of the determinants.
        """
        if (existing := self.find(record.key)) is not None:
            return read_record(existing)
        with self.room_for(record) as temporary:
            # The artifacts, and beside them the settings and all that the key is the digest of.
            write(temporary)
            settings = json_bytes(record.config)
            if not (temporary / CONFIG).exists():
                (temporary / CONFIG).write_bytes(settings)
            if determinants is not None:
                (temporary / DETERMINANTS).write_text(canonical_json(determinants))
            names = file_names(temporary)
            if taken := RESERVED & set(names):
                raise ValueError(f"{record.name}: the file names {sorted(taken)} are reserved")

            # The digest of every file.
            record = replace(record, files={name: sha256_file(temporary / name) for name in names})
            if determinants is not None and record.files[DETERMINANTS] != record.key:
                raise ValueError(f"{record.name}: its key {record.key[:16]}… is not the digest of its determinants")

            # The record after all the files that it lists, the list of digests last.
            (temporary / RECORD).write_bytes(json_bytes(record.to_dict()))
            write_sums(temporary, record)
            as_read_back = replace(record, config=json.loads(settings))  # JSON makes lists of tuples
            return self._publish(as_read_back, temporary)

    @contextlib.contextmanager
    def room_for(self, record: LineageRecord) -> Iterator[Path]:
        """Give an empty directory of the same file system to prepare a node in; it is gone afterwards.

        What a killed process left of such a directory is removed. Errors of the disk say what could not be written.
        """
        prefix, own = f".tmp-{self.path(record).name}.", Process.current()
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
        """Make a committed node of a downloaded directory on the same file system; ValueError when it is not intact.

        `record_digest` is the SHA-256 that record.json must have: the anchor from which every other digest follows.
        """
        check_digest(downloaded / RECORD, record_digest)
        record = LineageRecord.from_json((downloaded / RECORD).read_bytes())
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
            raise LookupError(f"no lineage node with key {key[:16]}… in {self.directory.resolve()}")
        return directory

    def _publish(self, record: LineageRecord, temporary: Path) -> LineageRecord:
        """Force a node to the disk, give it its final name in one step, and return the record that stands there."""
        for path in (*temporary.rglob("*"), temporary):
            fsync(path)
        final = self.path(record)
        reach("node-written")
        try:
            os.rename(temporary, final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            # Another process was faster with the same key; equal keys mean equal results, so its node stays.
            found = read_record(final)
            if found.key != record.key:
                raise ValueError(f"{final} belongs to another key, {found.key}; move it away") from None
            return found
        fsync(self.directory)
        reach("node-committed")
        return record


def write_sums(directory: Path, record: LineageRecord) -> None:
    """Write the list of digests of a node whose record is written."""
    sums = {**record.files, RECORD: sha256_file(directory / RECORD)}
    (directory / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))
