"""Runs that are being made: who makes them, and the newest state of their training, until they are committed.

Each has a directory `.making-<kind>-<first 16 digits of its key>` beside the finished ones. A process holds it by a
file lock, which the system lets go of when the process dies, and by a heartbeat for hosts that do not share locks.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from harness.common.digest import canonical_json, sha256_file
from harness.common.files import process_exists, reach, write_atomically

if TYPE_CHECKING:
    from filelock import FileLock

_log = logging.getLogger(__name__)

FORMAT = "harness.state/1"
HEARTBEAT_SECONDS = 10.0
DEAD_AFTER_SECONDS = 60.0
"""A holder on another host whose heartbeat is older than this is taken for dead."""

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_LOCK, _OWNER, _DRAFT = "lock", "owner.json", "draft.json"
_METADATA_KEY = "harness"
_NO_MATTER = (
    *("argv", "command", "hardware.", "level", "schedule.", "launch.threads", "launch.device"),
    *("search.runs", "search.experiment", "search.offline", "search.num_levels", "search.checkpoint_"),
    *("search.data.directory", "search.data.num_workers", "search.stuck_after"),
)
_STATE = re.compile(r"state-(\d{6})-(\d{9})-([0-9a-f]{64})\.safetensors")


class BusyError(ValueError):
    """Another launch is making the same run."""


class Unfinished:
    """The directory of one run, or of one search, that is being made (rank 0)."""

    def __init__(self, runs: Path, kind: str, key: str, name: str, parents: Sequence[str] = ()) -> None:
        """`parents` are the keys of what it is made from: it needs them until it is finished."""
        self.directory = runs / f".making-{kind}-{key[:16]}"
        self.key, self.name, self.parents = key, name, tuple(parents)
        self._token: str | None = None
        """Of the claim that this object holds."""
        self._discarded = False

    @contextmanager
    def claimed(self, config: dict[str, Any]) -> Iterator[None]:
        """Hold the run while it is made; BusyError naming the holder if another launch does.

        A dead holder is taken over from. The directory stays, with what it holds, unless `discard` is called.
        """
        # A lock tells processes of this host apart, a heartbeat those of hosts that do not share locks.
        lock, done, beating = self._lock(), threading.Event(), None
        try:
            dead = _owner_of(self.directory).get("token")
            self._wait_for_the_holder(locked=lock is not None)
            self._take(config, dead)
            beating = threading.Thread(target=self._beat, args=(done,), name="heartbeat", daemon=True)
            beating.start()
            yield
        finally:
            done.set()
            try:
                if beating is not None:
                    beating.join()
            finally:
                # Let go, and remove the directory of a run that is committed.
                mine, self._token = self._token is not None and self._is_mine(), None
                if mine:
                    (self.directory / _OWNER).unlink(missing_ok=True)
                if lock is not None:
                    lock.release()
                if mine and self._discarded:
                    with suppress(OSError):  # another launch may look at it just now
                        (self.directory / _LOCK).unlink(missing_ok=True)
                        self.directory.rmdir()

    def _beat(self, done: threading.Event) -> None:
        """Give signs of life until the claim ends."""
        while not done.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):
                if self._is_mine():  # a holder that stood still for long may have been taken over
                    os.utime(self.directory / _OWNER)

    def save(self, header: dict[str, Any], tensors: dict[str, torch.Tensor], position: tuple[int, int]) -> None:
        """Write a state whole or not at all, then drop the earlier ones; an OSError says path and bytes."""
        if not self._is_mine():
            raise self._busy("this process stood still and was taken for dead")
        metadata = {_METADATA_KEY: canonical_json({"format": FORMAT, "key": self.key, **header})}
        data = save(tensors, metadata)
        epoch, step = position
        path = self.directory / f"state-{epoch:06}-{step:09}-{sha256(data).hexdigest()}.safetensors"
        earlier = [other for other in self._states() if other != path]
        try:
            write_atomically(path, data, fault_point="state-written")
        except OSError as error:
            free = shutil.disk_usage(self.directory.parent).free
            raise OSError(
                error.errno,
                f"cannot save the state of {self.name!r} in {path.parent}: {os.strerror(error.errno or 0)}; it needs "
                f"{len(data):,} bytes, {free:,} are free. The earlier state is whole: free some space and start the "
                "same command again, it continues",
            ) from error
        reach("state-renamed")
        for other in earlier:
            other.unlink(missing_ok=True)

    def newest(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """Return (header, tensors) of the newest whole state, or None; altered ones are named and passed by."""
        for path in self._states():
            try:
                return self._read(path)
            except ValueError as error:
                _log.warning(f"{error}; looking for an earlier one")
        return None

    def saved_at(self) -> datetime | None:
        """When the newest state was written."""
        states = self._states()
        return datetime.fromtimestamp(states[0].stat().st_mtime) if states else None

    def discard(self) -> None:
        """Remove everything: the run is committed. Within `claimed`, the directory itself goes when the claim ends."""
        if self._token is None or not self._is_mine():
            return  # taken over by another launch: nothing there is ours any more
        for path in self.directory.iterdir():
            if path.name not in (_LOCK, _OWNER):
                path.unlink(missing_ok=True)
        self._discarded = True

    def discard_if_idle(self) -> None:
        """Remove what a launch that died right after its commit left behind; BusyError if it is still at work."""
        if self.directory.is_dir():
            with suppress(OSError), self.claimed({}):  # a finished run on a full or read-only disk can be used
                self.discard()

    def nearly_the_same(self, config: dict[str, Any], most: int = 3) -> list[str]:
        """Describe other unfinished runs of this kind that differ in at most `most` settings: name, field, old, new.

        Those that another process is at work on are what was asked for there, and no news.
        """
        kind, found = self.directory.name.rpartition("-")[0], []
        drafts = sorted(self.directory.parent.glob(f"{kind}-*/{_DRAFT}"))
        others = [path for path in drafts if path.parent != self.directory and not _is_held(path.parent)]
        ours = _flat(config) if others else {}
        for path in others:
            with suppress(OSError, ValueError, KeyError):
                draft = json.loads(path.read_bytes())
                theirs = _flat(draft["config"])
                differ = [name for name in sorted(ours | theirs) if ours.get(name) != theirs.get(name)]
                if 0 < len(differ) <= most:
                    changes = ", ".join(f"{name} {theirs.get(name)} → {ours.get(name)}" for name in differ)
                    found.append(f"{draft['name']!r} is unfinished and differs only in {changes}")
        return found

    def _lock(self) -> FileLock | None:
        """Lock the directory, made if need be; None where the file system has no locks. BusyError if it is locked."""
        from filelock import FileLock, Timeout

        for attempt in (1, 2):
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                lock = FileLock(self.directory / _LOCK, fallback_to_soft=False)
                lock.acquire(timeout=0)
                return lock
            except Timeout:
                raise self._busy("its lock is held") from None
            except FileNotFoundError:
                if attempt == 2:
                    raise
                continue  # its last holder has just removed the directory
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    return None
                raise self._cannot_write(error) from error
        raise AssertionError("unreachable")

    def _wait_for_the_holder(self, *, locked: bool) -> None:
        """BusyError if the marked holder lives: a lock of another host may not be seen here."""
        if (
            not (self.directory / _OWNER).exists()
            or (age := self._heartbeat_age()) is None
            or age >= DEAD_AFTER_SECONDS
        ):
            return
        owner = _owner_of(self.directory)
        if owner.get("host") == socket.gethostname():
            # our lock says that it is dead; without locks its number must
            if locked or owner.get("pid") == os.getpid() or not process_exists(int(owner.get("pid", 0))):
                return
            raise self._busy("its process is alive")
        _log.info(
            f"{self.name!r} was held on {owner.get('host')} {age:.0f} s ago; waiting for a sign of life from there"
        )
        last = _beat_at(self.directory)
        while (age := self._heartbeat_age()) is not None and age < DEAD_AFTER_SECONDS:
            if _beat_at(self.directory) != last:
                raise self._busy("it has just given a sign of life")
            time.sleep(min(1.0, DEAD_AFTER_SECONDS / 10))

    def _take(self, config: dict[str, Any], dead: str | None) -> None:
        """Mark the directory as held by this process instead of `dead`, as only one of several processes can do."""
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        token = secrets.token_hex(16)
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": now, "token": token}
        mark = self.directory / f".{_OWNER}.{token}"
        try:
            for path in self.directory.iterdir():
                if path.name.startswith((f".{_DRAFT}", ".state-")):
                    path.unlink(missing_ok=True)  # half-written files of a launch that died
            if _owner_of(self.directory).get("token") == dead:
                (self.directory / _OWNER).unlink(missing_ok=True)
            mark.write_text(json.dumps(owner))
            os.link(mark, self.directory / _OWNER)  # fails if another has just done the same
            self._token = token
            if config:
                draft = {"name": self.name, "parents": self.parents, "config": config}
                write_atomically(self.directory / _DRAFT, json.dumps(draft).encode())
        except FileExistsError:
            raise self._busy("it began at the same time") from None
        except OSError as error:
            raise self._cannot_write(error) from error
        finally:
            mark.unlink(missing_ok=True)

    def _is_mine(self) -> bool:
        return _owner_of(self.directory).get("token") == self._token

    def _cannot_write(self, error: OSError) -> OSError:
        free = shutil.disk_usage(next(path for path in self.directory.parents if path.exists())).free
        return OSError(
            error.errno,
            f"cannot write to {self.directory.parent}: {os.strerror(error.errno or 0)} ({free:,} bytes are free); make "
            "space or choose another --runs, then start the same command again",
        )

    def _states(self) -> list[Path]:
        """Paths of the states, newest first."""
        if not self.directory.is_dir():
            return []
        return sorted((path for path in self.directory.iterdir() if _STATE.fullmatch(path.name)), reverse=True)

    def _read(self, path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        match = _STATE.fullmatch(path.name)
        assert match is not None
        if sha256_file(path) != match[3]:
            raise ValueError(f"the state {path} was altered or cut")
        try:
            with safe_open(os.fspath(path), "pt") as file:
                header = json.loads((file.metadata() or {})[_METADATA_KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"the state {path} cannot be read ({error})") from error
        if header.get("format") != FORMAT or header.get("key") != self.key:
            raise ValueError(f"the state {path} is of another run or format")
        return header, tensors

    def _busy(self, why: str) -> BusyError:
        owner = _owner_of(self.directory)
        who = f"process {owner['pid']} on {owner['host']} since {owner['since']}" if owner else "another process"
        return BusyError(
            f"{self.name!r} is already being made by {who} ({why}). Wait for it, or stop it: the same command then "
            "goes on from its last state"
        )

    def _heartbeat_age(self) -> float | None:
        """Seconds since the holder's last sign of life, by the clock of the file system; None without a holder."""
        last = _beat_at(self.directory)
        if last is None:
            return None
        probe = self.directory / f".probe-{secrets.token_hex(8)}"
        try:
            probe.touch()
            return probe.stat().st_mtime - last
        except OSError as error:
            raise self._cannot_write(error) from error
        finally:
            probe.unlink(missing_ok=True)


def _owner_of(directory: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((directory / _OWNER).read_bytes()))
    except (OSError, ValueError):
        return {}


def _beat_at(directory: Path) -> float | None:
    """When the holder gave its last sign of life; None without a holder."""
    try:
        return (directory / _OWNER).stat().st_mtime
    except FileNotFoundError:
        return None


def _is_held(directory: Path) -> bool:
    """Whether another process is at work on a run, as far as a look from outside tells."""
    owner, beat_at = _owner_of(directory), _beat_at(directory)
    if beat_at is None:
        return False
    silent = time.time() - beat_at
    pid = int(owner.get("pid", 0))
    alive = owner.get("host") != socket.gethostname() or (pid != os.getpid() and process_exists(pid))
    return bool(alive and silent < DEAD_AFTER_SECONDS)


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the settings by dotted name, without those that make no other run."""
    flat: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        elif not f"{prefix}{name}".startswith(_NO_MATTER):
            flat[f"{prefix}{name}"] = json.dumps(value)
    return flat
