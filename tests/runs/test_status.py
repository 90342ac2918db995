"""Test the status file.

It tells a script whether to start the same command again.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.common.process import Process, _stat
from harness.distributed.status import reported
from harness.distributed.stop import StoppedError
from harness.distributed.world import StopRequest

GLOO = "[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 600000ms for recv operation to complete"


@pytest.mark.parametrize(
    ("error", "peer_failed", "status"),
    [
        (None, False, "finished"),
        (StoppedError("got SIGTERM"), False, "preempted"),
        (RuntimeError("[gloo] Connection closed by peer"), False, "preempted"),
        (RuntimeError("[gloo] Connection closed by peer"), True, "failed"),
        (RuntimeError(GLOO), False, "preempted"),
        (RuntimeError(GLOO), True, "preempted"),  # the other process timed out as well
        (RuntimeError("out of memory"), False, "failed"),
        (ValueError("Timed out waiting"), False, "failed"),
        (KeyboardInterrupt(), False, "failed"),
    ],
)
def test_the_status_of_each_kind_of_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException | None, peer_failed: bool, status: str
) -> None:
    monkeypatch.delenv("HARNESS_STATUS", raising=False)
    world = SimpleNamespace(peer_failed=lambda: peer_failed, before_ending=lambda tell: None, stop=StopRequest())
    try:
        with reported(tmp_path, world):  # type: ignore[arg-type]
            assert json.loads((tmp_path / "status.json").read_text())["status"] == "running"
            if error is not None:
                raise error
    except BaseException as raised:
        assert raised is error
    assert json.loads((tmp_path / "status.json").read_text())["status"] == status


@pytest.fixture
def status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_STATUS", str(tmp_path / "status"))
    return tmp_path / "status"


def run(tmp_path: Path) -> None:
    world = SimpleNamespace(peer_failed=lambda: False, before_ending=lambda tell: None, stop=StopRequest())
    with reported(tmp_path, world):  # type: ignore[arg-type]
        pass


def test_a_fifo_stays_and_does_not_block(tmp_path: Path, status: Path) -> None:
    os.mkfifo(status)
    run(tmp_path)  # without a reader
    reader = os.open(status, os.O_RDONLY | os.O_NONBLOCK)
    run(tmp_path)
    assert b"finished" in os.read(reader, 1 << 16) and status.is_fifo()
    os.close(reader)


@pytest.mark.parametrize("target", ["/dev/null", "file"])
def test_a_link_stays(tmp_path: Path, status: Path, target: str) -> None:
    status.symlink_to(target)
    run(tmp_path)
    assert status.is_symlink() and Path("/dev/null").is_char_device()
    assert target != "file" or "finished" in (tmp_path / "file").read_text()


def test_a_directory_is_a_warning(tmp_path: Path, status: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status.mkdir()
    run(tmp_path)
    assert f"cannot write the status file {status}" in capsys.readouterr().err and status.is_dir()


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, True),  # the parent process is running
        ({"started": "1"}, False),  # its number was given to another process
        ({"pid_namespace": "1"}, False),
        ({"boot": "00000000"}, False),
        ({"pid": 2**22 + 1}, False),
        ({"status": "preempted"}, False),
        ({"pid": "none"}, False),
    ],
)
def test_the_file_of_another_running_launch_is_kept(tmp_path: Path, status: Path, changes: dict, kept: bool) -> None:
    parent = replace(Process.current(), pid=os.getppid(), started=_stat(os.getppid())[1])
    text = json.dumps({"status": "running", **parent.record} | changes)
    status.write_text(text)
    run(tmp_path)
    assert (status.read_text() == text) is kept
