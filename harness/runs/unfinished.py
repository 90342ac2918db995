"""Unfinished runs: the process that makes a run, and the newest state of its training.

Each unfinished run has a directory `.making-<kind>-<first 16 digits of its key>` beside the finished runs. A process
claims it by a file lock, which the operating system releases when the process dies. A heartbeat file protects it from
processes on hosts that do not share locks. Only a change of this file counts as a sign of life: its time comes from the
clock of another host.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from harness.common.digest import canonical_json, sha256_file
from harness.common.escape import one_line
from harness.common.files import MOST_JSON_BYTES, NO_LOCKS, reach, read_bounded, read_json, write_atomically
from harness.common.launched import counted
from harness.common.process import Process, own_process
from harness.common.program import command, runs_option
from harness.common.waiting import wait_until

if TYPE_CHECKING:
    from filelock import FileLock

_log = logging.getLogger(__name__)

FORMAT = "harness.state/1"
HEARTBEAT_SECONDS = 10.0
DEAD_AFTER_SECONDS = 60.0
"""A holder on another host counts as dead if its heartbeat file has not changed for this long."""

_LOCK, _OWNER, _DRAFT = "lock", "owner.json", "draft.json"
_METADATA_KEY = "harness"
_NO_MATTER = (
    *("argv", "command", "hardware.", "level", "schedule.", "launch.threads", "launch.device"),
    *("search.runs", "search.experiment", "search.offline", "search.num_levels", "search.checkpoint_"),
    *("search.data.directory", "search.data.num_workers", "search.stuck_after"),
    *("search.earlier_processes", "search.evaluate_every"),
)
_STATE = re.compile(r"state-(\d{6})-(\d{9})-([0-9a-f]{64})\.safetensors")


_silent: set[Process] = set()
"""Processes of other hosts that were found dead by their silence. Their further claims are not waited for."""


class BusyError(ValueError):
    """Another launch is making the same run."""


class MovedError(ValueError):
    """The directory of the runs was moved or deleted while a run was being made."""


class NotSavedError(OSError):
    """A state could not be written. The earlier states are intact."""

    problem = ""
    """The message without advice."""


class Unfinished:
    """The directory of one unfinished run, or of one unfinished search (rank 0)."""

    def __init__(self, runs: Path, kind: str, key: str, name: str, parents: Sequence[str] = ()) -> None:
        """Describe the directory. It is created by `claimed`.

        Args:
            runs: The directory of all runs.
            parents: Keys of the parent runs. `gc` keeps their checkpoints while this run is unfinished.
        """
        self.directory = runs / f".making-{kind}-{key[:16]}"
        self._absolute = self.directory.absolute()  # for messages, even if the working directory is deleted
        self.is_gone = False
        """Whether the heartbeat has found that the claimed directory is gone."""
        self.key, self.name, self.parents = key, name, tuple(parents)
        self._token: str | None = None
        """Token of the claim that this object holds."""
        self._discarded = False

    @contextmanager
    def claimed(self, config: dict[str, Any]) -> Iterator[None]:
        """Claim the run while the block runs.

        The claim of a dead process is taken over. The directory and its states stay after the block, unless `discard`
        was called.

        Args:
            config: The run's settings, stored for `nearly_the_same`.

        Raises:
            BusyError: Another launch holds the claim. The message names it.
        """
        # Phase: acquire the claim. The lock excludes processes on this host, the heartbeat those on other hosts.
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
                # Phase: release the claim, and remove the directory if the run is committed.
                mine, self._token = self._token is not None and self._is_mine(), None
                if mine:
                    (self.directory / _OWNER).unlink(missing_ok=True)
                if lock is not None:
                    lock.release()
                if mine and self._discarded:
                    with suppress(OSError):  # another launch may be accessing the directory
                        (self.directory / _LOCK).unlink(missing_ok=True)
                        self.directory.rmdir()

    def _beat(self, done: threading.Event) -> None:
        """Update the heartbeat until the claim ends."""
        while not done.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):
                self.is_gone = not self.directory.is_dir()
                if self._is_mine():  # after a long suspension, another process may have taken over the claim
                    os.utime(self.directory / _OWNER)

    def save(self, header: dict[str, Any], tensors: dict[str, torch.Tensor], position: tuple[int, int]) -> None:
        """Write a state atomically, then delete the earlier ones.

        Args:
            position: The (epoch, step) of the state.

        Raises:
            BusyError: Another launch has taken over the claim.
            MovedError: The directory is gone.
            NotSavedError: The state cannot be written. The message has the path, and needed and free bytes.
        """
        # Phase: serialise the state.
        if self._is_lost():
            raise self.loss()
        metadata = {_METADATA_KEY: canonical_json({"format": FORMAT, "key": self.key, **header})}
        data = save(tensors, metadata)
        epoch, step = position
        path = self.directory / f"state-{epoch:06}-{step:09}-{sha256(data).hexdigest()}.safetensors"

        # Phase: write it, then delete the earlier states.
        try:
            earlier = [other for other in self._states() if other != path]
            write_atomically(path, data, fault_point="state-written")
        except OSError as error:
            if self._is_lost():
                raise self.loss() from error
            problem = f"cannot save the state of {self.name!r} in {path.parent}: {os.strerror(error.errno or 0)}; it "
            problem += f"needs {len(data):,} bytes, {_free_bytes(path)} are free"
            failure = NotSavedError(
                error.errno,
                f"{problem}. The earlier state is intact: free some space and start the same command again to resume",
            )
            failure.problem = problem
            raise failure from error
        reach("state-renamed")
        for other in earlier:
            with suppress(OSError):  # the new state is saved, and `newest` prefers it
                other.unlink(missing_ok=True)

    def loss(self) -> ValueError:
        """Return why this process no longer holds the claim: MovedError or BusyError."""
        expected = (self._absolute.parent, self._absolute, self._absolute / _OWNER)
        gone = next((path for path in expected if not path.exists()), None)
        if gone is None:
            return self._busy("this process was suspended, and its claim was taken over")
        return MovedError(
            f"{gone} is gone: it was moved or deleted while {self.name!r} was being made. If it was moved, move it "
            "back. Then start the same command again: it resumes from the last saved state"
        )

    def newest(
        self, check: Callable[[dict[str, Any]], None] | None = None
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """Return (header, tensors) of the newest intact state, or None. Corrupt states are skipped with a warning.

        Args:
            check: Raises an exception if a header lacks something, or has a value of another type.
        """
        for path in self._states():
            try:
                header, tensors = self._read(path)
                if check is not None:
                    check(header)
                return header, tensors
            except OSError:
                raise
            except Exception as error:  # whatever is in the file, an earlier state is looked for
                what = str(error) if str(path) in str(error) else f"the state {path} cannot be read: {error!r:.200}"
                _log.warning(f"{what}; trying an earlier state")
        return None

    def saved_at(self) -> datetime | None:
        """Return the time of the newest state, or None."""
        states = self._states()
        return datetime.fromtimestamp(states[0].stat().st_mtime) if states else None

    def discard(self) -> None:
        """Delete all states. The directory itself is removed when the claim ends.

        Call this within `claimed`, when the run is committed. Without the claim, it does nothing.
        """
        if self._token is None or not self._is_mine():
            return  # the claim belongs to another launch
        for path in self.directory.iterdir():
            if path.name not in (_LOCK, _OWNER):
                path.unlink(missing_ok=True)
        self._discarded = True

    def discard_if_idle(self) -> None:
        """Remove the directory of a finished run, left by a launch that died right after its commit.

        Raises:
            BusyError: A launch still holds the claim.
        """
        if self.directory.is_dir():
            with suppress(OSError), self.claimed({}):  # on a full or read-only disk, a finished run is still usable
                self.discard()

    def nearly_the_same(self, config: dict[str, Any], most: int = 3) -> list[str]:
        """Describe other unfinished runs of this kind and level that differ from `config` in 1 to `most` settings.

        Each text has the run's name, the differing options, and how to resume or delete it. Runs of other seeds or
        tickets are omitted. So are runs that another process is making right now. Both are usually intended.
        """
        # Phase: find unfinished runs without a living holder.
        kind, found = self.directory.name.rpartition("-")[0], []
        drafts = sorted(self.directory.parent.glob(f"{kind}-*/{_DRAFT}"))
        others = [path for path in drafts if path.parent != self.directory and not _is_held(path.parent)]
        ours = _flat(config) if others else {}

        # Phase: compare their settings.
        for path in others:
            with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                draft = read_json(path)
                theirs = _flat(draft["config"])
                differ = [name for name in sorted(ours | theirs) if ours.get(name) != theirs.get(name)]
                other_run = draft["config"].get("level") != config.get("level") or any(map(_names_a_run, differ))
                if 0 < len(differ) <= most and not other_run:
                    old, new = (", ".join(_option(name, flat.get(name)) for name in differ) for flat in (theirs, ours))
                    found.append(
                        f"{draft['name']!r} is unfinished and has {old}. This launch has {new}. It "
                        "does not take over that state: run the earlier command again to resume it, or delete it with "
                        f"`{command(f'lineage gc --older-than 0 --delete{runs_option(self.directory.parent)}')}`"
                    )
        return found

    def _lock(self) -> FileLock | None:
        """Create the directory if necessary, and lock it.

        Returns:
            The lock, or None if the file system has no locks.

        Raises:
            BusyError: The directory is locked by another process.
            OSError: The directory cannot be written.
        """
        # Phase: try twice, since the last holder may remove the directory between mkdir and acquire.
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
                continue
            except OSError as error:
                if error.errno in NO_LOCKS:
                    return None
                raise self._cannot_write(error) from error
        raise AssertionError("unreachable")

    def _wait_for_the_holder(self, *, locked: bool) -> None:
        """Raise BusyError if the recorded holder is alive, since locks of another host may not be visible.

        If the holder may be on another host, wait up to DEAD_AFTER_SECONDS for a change of its heartbeat file. The wait
        is measured by this process's own clock.
        """
        # Phase: return if the holder is known to be dead.
        if not (self.directory / _OWNER).exists():
            return
        content, beat_at = _owner_of(self.directory), _beat_at(self.directory)
        owner = Process.of(content)
        if owner is not None:
            alive = owner.alive
            # The death of its holder releases a lock. Containers with mounts of their own may not share locks.
            if alive is False or owner in _silent or owner.is_current or (locked and alive is not None):
                return
            if alive:
                raise self._busy("its process is alive")

        # Phase: watch the heartbeat of a holder whose process cannot be looked up here.
        _log.info(
            f"{self.name!r} is claimed on {content.get('host', 'an unknown host')}: waiting up to "
            f"{DEAD_AFTER_SECONDS:g} s for its next heartbeat"
        )

        def has_changed() -> bool:
            return _beat_at(self.directory) != beat_at or _owner_of(self.directory) != content

        if wait_until(has_changed, DEAD_AFTER_SECONDS, pause=min(1.0, DEAD_AFTER_SECONDS / 10)):
            if _beat_at(self.directory) is not None:
                raise self._busy("its heartbeat continues")
        elif owner is not None:
            _silent.add(owner)

    def _take(self, config: dict[str, Any], dead: str | None) -> None:
        """Write this process's claim in place of a dead one. Only one of several competing processes succeeds.

        Args:
            dead: Token of the dead holder's claim, or None.
        """
        # Phase: remove partial files and the dead claim.
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        token = secrets.token_hex(16)
        owner = {**own_process(os.getpid()).record, "since": now, "token": token}
        mark = self.directory / f".{_OWNER}.{token}"
        try:
            for path in self.directory.iterdir():
                if path.name.startswith((f".{_DRAFT}", ".state-")):
                    path.unlink(missing_ok=True)  # partial files of a launch that died
            if _owner_of(self.directory).get("token") == dead:
                (self.directory / _OWNER).unlink(missing_ok=True)
            # Phase: claim. os.link fails if another process has just claimed the directory.
            mark.write_text(json.dumps(owner))
            os.link(mark, self.directory / _OWNER)
            self._token = token
            if config:
                draft = {"name": self.name, "parents": self.parents, "config": config}
                write_atomically(self.directory / _DRAFT, json.dumps(draft).encode())
        except FileExistsError:
            raise self._busy("it started at the same time") from None
        except OSError as error:
            raise self._cannot_write(error) from error
        finally:
            mark.unlink(missing_ok=True)

    def _is_mine(self) -> bool:
        return _owner_of(self.directory).get("token") == self._token

    def _is_lost(self) -> bool:
        """Return whether another process has the claim, or it is gone. An unreadable file proves neither."""
        try:
            (self.directory / _OWNER).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False
        return not self._is_mine()

    def _cannot_write(self, error: OSError) -> OSError:
        free = _free_bytes(self.directory)
        return OSError(
            error.errno,
            f"cannot write to {self.directory.parent}: {os.strerror(error.errno or 0)} ({free} bytes are free); make "
            "space or choose another --runs, then start the same command again",
        )

    def _states(self) -> list[Path]:
        """Return the paths of all states, newest first."""
        if not self.directory.is_dir():
            return []
        states = (path for path in self.directory.iterdir() if _STATE.fullmatch(path.name) and path.is_file())
        return sorted(states, reverse=True)

    def _read(self, path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        match = _STATE.fullmatch(path.name)
        assert match is not None
        if sha256_file(path) != match[3]:
            raise ValueError(f"the state {path} was altered or truncated")
        try:
            with safe_open(os.fspath(path), "pt") as file:
                header = json.loads((file.metadata() or {})[_METADATA_KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"the state {path} cannot be read ({one_line(error):.200})") from error
        if not isinstance(header, dict) or header.get("format") != FORMAT or header.get("key") != self.key:
            raise ValueError(f"the state {path} belongs to another run or has another format")
        return header, tensors

    def _busy(self, why: str) -> BusyError:
        owner = _owner_of(self.directory)
        since = f" since {owner['since']}" if "since" in owner else ""
        who = f"process {owner['pid']} on {owner['host']}{since}" if Process.of(owner) else "another process"
        return BusyError(
            f"{self.name!r} is already being made by {who} ({why}). Wait for it, or stop it: the same command then "
            "resumes from its last state"
        )


def _free_bytes(path: Path) -> str:
    """Return the number of free bytes of the file system that `path` is, or would be, on; "?" if it is unknown."""
    try:
        return f"{shutil.disk_usage(next(above for above in path.absolute().parents if above.exists())).free:,}"
    except OSError:
        return "?"


def _owner_of(directory: Path) -> dict[str, Any]:
    """Return the recorded claim of a run; {} if there is none, or if it is no JSON object."""
    try:
        # NaN becomes a text: two readings of a claim must be equal.
        owner = json.loads(read_bounded(directory / _OWNER, MOST_JSON_BYTES), parse_constant=str)
    except (OSError, ValueError, RecursionError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _beat_at(directory: Path) -> float | None:
    """Return the time of the holder's last heartbeat; None without a holder."""
    try:
        return (directory / _OWNER).lstat().st_mtime
    except FileNotFoundError:
        return None


def _is_held(directory: Path) -> bool:
    """Return whether another process seems to be making a run, judged by its heartbeat and identity."""
    owner, beat_at = Process.of(_owner_of(directory)), _beat_at(directory)
    if beat_at is None or owner is None or owner.is_current or owner.alive is False:
        return False
    return time.time() - beat_at < DEAD_AFTER_SECONDS


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the settings by dotted name, without those that do not matter for the run's identity."""
    flat: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        elif not f"{prefix}{name}".startswith(_NO_MATTER):
            flat[f"{prefix}{name}"] = json.dumps(value)
    return flat


def _names_a_run(name: str) -> bool:
    """Return whether runs that differ in this setting are different runs on purpose."""
    return name == "ticket" or name.endswith("_seed")


def _option(name: str, value: str | None) -> str:
    """Return a flat setting and its JSON value as the user gives them, such as `--level-epochs 20`."""
    given = "none" if value in (None, "null") else str(value).strip('"')
    if name == "launch.world_size":
        return counted(given)
    prefix, _, rest = name.partition(".")
    option = rest if prefix == "search" else name
    is_option = prefix == "search" or name == "kind"
    return f"--{option.replace('_', '-')} {given}" if is_option else f"{name} {given}"
