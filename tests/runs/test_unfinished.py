"""Test unfinished runs: exclusive ownership and atomic states."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import harness.runs.unfinished
from harness.common.digest import sha256_json
from harness.common.process import Process
from harness.distributed.stop import StoppedError
from harness.distributed.world import StopRequest
from harness.runs.unfinished import BusyError, MovedError, NotSavedError, Unfinished

KEY = sha256_json("a run")


def unfinished(tmp_path: Path, key: str = KEY) -> Unfinished:
    return Unfinished(tmp_path, "level", key, "L03 d0.512 aws resnet20")


def state(value: float) -> dict[str, torch.Tensor]:
    return {"param.w": torch.full((64,), value), "tally": torch.zeros(3, dtype=torch.float64)}


def saved(tmp_path: Path) -> list[Path]:
    return sorted(unfinished(tmp_path).directory.glob("state-*"))


def test_the_newest_state_is_the_only_one_and_comes_back_whole(tmp_path: Path):
    one = unfinished(tmp_path)
    with one.claimed({}):
        assert one.newest() is None
        for step in (1, 2, 10):
            one.save({"epoch": 0, "step": step}, state(step), (0, step))
        header, tensors = one.newest() or ({}, {})
        assert header["step"] == 10 and torch.equal(tensors["param.w"], state(10)["param.w"])
        assert len(saved(tmp_path)) == 1
        one.discard()
    assert list(tmp_path.iterdir()) == []


def test_an_altered_or_cut_state_is_named_and_the_earlier_one_taken(tmp_path: Path, capsys):
    one = unfinished(tmp_path)
    with one.claimed({}):
        one.save({"epoch": 0, "step": 1}, state(1), (0, 1))
        first = saved(tmp_path)[0].read_bytes()
        name = saved(tmp_path)[0].name
        one.save({"epoch": 0, "step": 2}, state(2), (0, 2))
        newest = saved(tmp_path)[-1]
        (newest.parent / name).write_bytes(first)
        whole = newest.read_bytes()
        generator = random.Random(0)
        for _ in range(50):
            data = bytearray(whole)
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
            newest.write_bytes(data)
            header, _ = one.newest() or ({}, {})
            assert header["step"] == 1
        newest.write_bytes(whole[:-1])
        assert (one.newest() or ({}, {}))[0]["step"] == 1
        assert str(newest) in capsys.readouterr().err


def test_a_full_disk_leaves_the_earlier_state(tmp_path: Path, monkeypatch):
    one = unfinished(tmp_path)
    with one.claimed({}):
        one.save({"epoch": 0, "step": 1}, state(1), (0, 1))

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"needs [\d,]+ bytes, [\d,]+ are free.*start the same command again"):
            one.save({"epoch": 0, "step": 2}, state(2), (0, 2))
        monkeypatch.undo()
        assert (one.newest() or ({}, {}))[0]["step"] == 1
        assert not list(one.directory.glob(".state*"))


@pytest.mark.parametrize(
    ("where", "failing"),
    [
        ("the list of states", [(Path, "iterdir")]),
        ("the directory", [(Path, "is_dir")]),
        ("the disk's free space", [(os, "fsync"), (shutil, "disk_usage")]),
        ("the whole disk", [(os, "fsync"), (Path, "read_bytes"), (Path, "exists")]),
    ],
)
def test_a_disk_that_fails_for_a_moment_takes_no_claim_away(tmp_path: Path, monkeypatch, where: str, failing: list):
    def fails(*arguments: object, **options: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    one = unfinished(tmp_path)
    with one.claimed({}):
        one.save({"epoch": 0, "step": 1}, state(1), (0, 1))
        with monkeypatch.context() as patch:
            for owner, name in failing:
                patch.setattr(owner, name, fails)
            with pytest.raises(NotSavedError, match="Input/output error"):
                one.save({"epoch": 0, "step": 2}, state(2), (0, 2))
        one.save({"epoch": 0, "step": 3}, state(3), (0, 3))
        assert (one.newest() or ({}, {}))[0]["step"] == 3


@pytest.mark.parametrize("text", ["3", "[1]", "null", "{}", '{"pid": 1}', '{"host": "h", "pid": []}', "[" * 100_000])
def test_an_odd_claim_is_no_claim_and_its_directory_is_found_busy_by_its_lock(tmp_path: Path, monkeypatch, text: str):
    monkeypatch.setattr(harness.runs.unfinished, "DEAD_AFTER_SECONDS", 0.05)
    one, other = unfinished(tmp_path), unfinished(tmp_path, sha256_json("another run"))
    with one.claimed({"a": 1}):
        (one.directory / "owner.json").write_text(text)
        with pytest.raises(BusyError, match="already being made by another process"), unfinished(tmp_path).claimed({}):
            pass
    assert len(other.nearly_the_same({"a": 2})) == 1
    with one.claimed({"a": 1}):
        one.save({"epoch": 0, "step": 1}, state(1), (0, 1))


def hold(tmp_path: Path) -> subprocess.Popen[str]:
    """Start another process that holds the run."""
    script = f"""
        import time
        from pathlib import Path
        from harness.runs.unfinished import Unfinished
        with Unfinished(Path({str(tmp_path)!r}), "level", {KEY!r}, "L03 d0.512 aws resnet20").claimed({{}}):
            print("held", flush=True)
            time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.mark.long
def test_a_second_launch_is_told_who_holds_the_run_and_a_dead_one_is_taken_over(tmp_path: Path):
    holder = hold(tmp_path)
    one = unfinished(tmp_path)
    with (
        pytest.raises(BusyError, match=rf"already being made by process {holder.pid} on \S+ since 20\d\d-"),
        one.claimed({}),
    ):
        pass
    with pytest.raises(BusyError):
        one.discard_if_idle()
    assert one.directory.is_dir()
    holder.kill()
    holder.wait()
    with one.claimed({}):
        pass


def foreign(one: Unfinished, pid: int = 7) -> Path:
    """Write the owner file of a process on another host.

    Its file lock is not visible on this host.
    """
    one.directory.mkdir()
    owner = one.directory / "owner.json"
    owner.write_text(json.dumps({"host": "elsewhere", "pid": pid, "since": "2026-01-01T00:00:00", "token": "x"}))
    return owner


@pytest.mark.long
def test_a_holder_on_another_host_blocks_while_its_heartbeat_continues(tmp_path: Path):
    one = unfinished(tmp_path)
    owner = foreign(one)
    beat = threading.Timer(1.0, lambda: os.utime(owner))
    beat.start()
    with pytest.raises(BusyError, match="process 7 on elsewhere since 2026.*heartbeat continues"), one.claimed({}):
        pass
    beat.join()
    assert json.loads(owner.read_text())["pid"] == 7, "the other process's owner file must stay"


@pytest.mark.long
def test_a_holder_on_another_host_without_heartbeat_is_taken_over(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(harness.runs.unfinished, "DEAD_AFTER_SECONDS", 2.0)
    one = unfinished(tmp_path)
    owner = foreign(one)
    with one.claimed({}):
        assert json.loads(owner.read_text())["pid"] == os.getpid()
    assert not owner.exists()


@pytest.mark.parametrize("beats", [True, False])
def test_a_holder_in_another_container_is_watched(tmp_path: Path, monkeypatch, beats: bool):
    """It may have the same kernel, and still another mount of the file system, without this lock."""
    monkeypatch.setattr(harness.runs.unfinished, "DEAD_AFTER_SECONDS", 0.3)
    one = unfinished(tmp_path)
    owner = foreign(one)
    process = replace(Process.current(), namespace="1" if beats else "2", pid=1)
    owner.write_text(json.dumps({**process.record, "token": "x"}))
    beat = threading.Timer(0.1, lambda: os.utime(owner, (0, 0)))  # a clock of 1970
    if beats:
        beat.start()
        with pytest.raises(BusyError, match="heartbeat continues"), one.claimed({}):
            pass
    else:
        with one.claimed({}):
            assert json.loads(owner.read_text())["pid"] == os.getpid()


def test_a_suspended_process_that_was_taken_over_saves_no_state(tmp_path: Path):
    one = unfinished(tmp_path)
    with one.claimed({}):
        one.save({"epoch": 0, "step": 1}, state(1), (0, 1))
        owner = one.directory / "owner.json"
        owner.write_text(json.dumps({"host": "elsewhere", "pid": 7, "since": "now", "token": "x"}))
        with pytest.raises(BusyError, match="its claim was taken over"):
            one.save({"epoch": 0, "step": 2}, state(2), (0, 2))
        one.discard()
    assert owner.exists() and len(saved(tmp_path)) == 1


@pytest.mark.long
def test_without_file_locks_a_live_process_on_this_host_blocks(tmp_path: Path, monkeypatch):
    holder = hold(tmp_path)

    def no_locks(self: object, **options: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("filelock.FileLock.acquire", no_locks)
    with (
        pytest.raises(BusyError, match=f"process {holder.pid} .*its process is alive"),
        unfinished(tmp_path).claimed({}),
    ):
        pass
    holder.kill()
    holder.wait()
    with unfinished(tmp_path).claimed({}):
        pass


def test_an_unfinished_run_with_one_different_setting_is_named(tmp_path: Path):
    # Phase: compare settings; command and hardware are ignored
    def config(**optim: float) -> dict:
        search = {"optim": {"lr": 0.1, "momentum": 0.9} | optim, "runs": "runs", "num_levels": 9}
        return {"search": search, "level": 0, "argv": ["a"], "command": "a", "hardware": {"cores": 2}}

    other = unfinished(tmp_path, sha256_json("another"))
    changed = config(lr=0.05) | {"argv": ["b"], "command": "b", "hardware": {"cores": 8}}
    with unfinished(tmp_path).claimed(config()):
        pass
    (note,) = other.nearly_the_same(changed)
    assert "'L03 d0.512 aws resnet20' is unfinished and has --optim.lr 0.1. This launch has --optim.lr 0.05." in note
    assert "gc --older-than 0 " in note
    # Phase: a run of another level or seed is not reported, because it is another run on purpose
    assert other.nearly_the_same(changed | {"level": 3}) == []
    assert other.nearly_the_same(changed | {"search": changed["search"] | {"init_seed": 5}}) == []
    assert other.nearly_the_same(config()) == []
    # `stuck_after` is ignored: it changes no bit, and earlier versions did not record it
    assert other.nearly_the_same(config() | {"search": config()["search"] | {"stuck_after": 8.0}}) == []
    # Phase: a run that a live process holds is not reported
    owner = unfinished(tmp_path).directory / "owner.json"
    for host, pid, since, named in (
        (socket.gethostname(), os.getppid(), 0, False),  # held by a live process
        (socket.gethostname(), os.getppid(), 61, True),  # stale: another process has this ID now
        (socket.gethostname(), os.getpid(), 0, True),  # stale: this process has this ID now
        (socket.gethostname(), 2**22 + 1, 0, True),  # no such process
        ("elsewhere", os.getpid(), 0, False),
        ("elsewhere", os.getpid(), 61, True),
    ):
        owner.write_text(json.dumps({"host": host, "pid": pid}))
        os.utime(owner, (time.time() - since,) * 2)
        assert bool(other.nearly_the_same(changed)) == named


@pytest.mark.parametrize("hours", [-5, 0, 5])
def test_a_dead_holder_is_waited_for_by_the_own_clock(tmp_path: Path, monkeypatch, hours: float):
    monkeypatch.setattr(harness.runs.unfinished, "DEAD_AFTER_SECONDS", 0.2)
    one = unfinished(tmp_path)
    owner = foreign(one, pid=1000 + int(hours))
    os.utime(owner, (time.time() + 3600 * hours,) * 2)  # the clock of its host is wrong
    began = time.monotonic()
    with one.claimed({}):
        assert 0.2 <= time.monotonic() - began < 5
    # A further claim of the same dead process is not waited for.
    other = unfinished(tmp_path, sha256_json("another"))
    foreign(other, pid=1000 + int(hours))
    monkeypatch.setattr(harness.runs.unfinished, "DEAD_AFTER_SECONDS", 60.0)
    with other.claimed({}):
        assert time.monotonic() - began < 30


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_living_holder_is_noticed_whatever_its_clock_says(tmp_path: Path, monkeypatch, hours: float):
    monkeypatch.setattr(harness.runs.unfinished, "DEAD_AFTER_SECONDS", 2.0)
    one = unfinished(tmp_path)
    owner = foreign(one, pid=2000 + int(hours))
    then = time.time() + 3600 * hours
    os.utime(owner, (then, then))
    beat = threading.Timer(0.1, os.utime, (owner, (then + 10, then + 10)))
    beat.start()
    with pytest.raises(BusyError, match="heartbeat continues"), one.claimed({}):
        pass
    beat.join()


def test_waiting_for_a_holder_heeds_a_request_to_stop(tmp_path: Path):
    one = unfinished(tmp_path)
    foreign(one, pid=3000)
    request = StopRequest()
    with request.listening():
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(StoppedError), one.claimed({}):
            pass
    assert json.loads((one.directory / "owner.json").read_text())["pid"] == 3000


@pytest.mark.parametrize("gone", ["runs", "directory", "owner.json"])
def test_a_moved_or_deleted_directory_is_named(tmp_path: Path, monkeypatch, gone: str):
    monkeypatch.setattr(harness.runs.unfinished, "HEARTBEAT_SECONDS", 0.05)
    runs = tmp_path / "runs"
    one = Unfinished(runs, "level", KEY, "L03 d0.512 aws resnet20")
    path = {"runs": runs, "directory": one.directory}.get(gone, one.directory / gone)
    with one.claimed({}):
        path.rename(tmp_path / "moved")
        until = time.monotonic() + 10
        while gone != "owner.json" and not one.is_gone and time.monotonic() < until:
            time.sleep(0.01)
        assert one.is_gone is (gone != "owner.json")
        with pytest.raises(MovedError, match=f"^{re.escape(str(path))} is gone: it was moved or deleted while 'L03"):
            one.save({"epoch": 0}, state(1), (0, 1))
    assert not runs.exists() or gone != "runs"
