"""Test how ended launchers are detected.

Only a closed connection shows that a launcher ended. Unreadable connections are never taken for closed ones.
"""

from __future__ import annotations

import psutil
import pytest

from harness.distributed import launcher_watch as launchers

HERE, THERE = ("::ffff:10.0.0.1", 4711), ("::ffff:10.0.0.2", 4712)


@pytest.mark.parametrize(
    ("now", "ended"),
    [({HERE, THERE}, []), ({HERE}, ["10.0.0.2"]), ({HERE, ("::ffff:10.0.0.2", 5000)}, ["10.0.0.2"]), (None, [])],
)
def test_a_launcher_has_ended_when_its_connection_is_closed(monkeypatch, now, ended):
    monkeypatch.setattr(launchers, "AT_START", frozenset({HERE, THERE}))
    monkeypatch.setattr(launchers, "connections", lambda: None if now is None else frozenset(now))
    assert launchers.ended() == ended


def test_unreadable_connections_are_unknown(monkeypatch):
    def refuse(pid: int) -> psutil.Process:
        raise psutil.AccessDenied(pid)

    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setattr(psutil, "Process", refuse)
    assert launchers.connections() is None
