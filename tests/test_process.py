"""Test by which facts a recorded process counts as alive, dead or unknown."""

from __future__ import annotations

import os
import socket
import subprocess
from dataclasses import replace

import pytest

from harness.common import process as process_module
from harness.common.process import Process, process_exists

OWN = Process.current()
PARENT_PID = os.getppid()


@pytest.mark.parametrize(
    ("changes", "alive"),
    [
        ({}, True),
        ({"started": "1"}, False),  # the number was given to another process
        ({"pid": 2**22 + 1}, False),
        ({"namespace": "1"}, None),  # another container has numbers of its own
        ({"boot": "00000000"}, None),  # another machine, or before a reboot
        ({"boot": "00000000", "pid": 2**22 + 1}, None),
        ({"host": "elsewhere"}, True),  # a container may be renamed: the kernel decides
        ({"host": "elsewhere", "started": "1"}, False),
        # Records of earlier versions have a host name and a number.
        ({"started": "", "boot": "", "namespace": ""}, True),
        ({"started": "", "boot": "", "namespace": "", "pid": 2**22 + 1}, False),
        ({"started": "", "boot": "", "namespace": "", "host": "elsewhere"}, None),
    ],
)
def test_a_process_is_alive_dead_or_unknown(changes: dict, alive: bool | None) -> None:
    process = replace(OWN, **changes)
    assert process.alive is alive
    # The record and the end of a file name say the same.
    assert Process.of(process.record) == process
    assert Process.of_suffix(process.suffix) == process


def test_a_process_that_has_ended_is_dead_also_before_its_parent_notices() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie: its number still exists
    assert process_exists(child.pid)
    stat = open(f"/proc/{child.pid}/stat").read().rpartition(")")[2].split()  # noqa: SIM115
    assert replace(OWN, pid=child.pid, started=stat[19]).alive is False
    child.wait()
    assert not any(map(process_exists, (child.pid, 0, -1, 10**30)))


@pytest.mark.parametrize("record", [{}, [], None, {"host": "a"}, {"host": "a", "pid": "x"}, {"host": "a", "pid": []}])
def test_a_record_that_names_no_process_is_none(record: object) -> None:
    assert Process.of(record) is None  # type: ignore[arg-type]


def test_another_container_is_unknown_where_the_own_namespace_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "_namespace", lambda: "")
    assert replace(OWN, pid=2**22 + 1).alive is None and replace(OWN, boot="00000000").alive is None


def test_only_this_process_is_the_current_one() -> None:
    assert OWN.is_current and Process.current() == OWN
    assert Process(socket.gethostname(), os.getpid()).is_current
    assert not replace(OWN, started="1").is_current
    assert not Process(socket.gethostname(), PARENT_PID).is_current
    assert Process.of_suffix("no process") is None and Process.of_suffix("host.7") == Process("host", 7)
