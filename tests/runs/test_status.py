"""Test the status file.

It tells a script whether to start the same command again.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.distributed.status import reported
from harness.distributed.stop import StoppedError

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
    world = SimpleNamespace(peer_failed=lambda: peer_failed, before_ending=lambda tell: None)
    try:
        with reported(tmp_path, world):  # type: ignore[arg-type]
            assert json.loads((tmp_path / "status.json").read_text())["status"] == "running"
            if error is not None:
                raise error
    except BaseException as raised:
        assert raised is error
    assert json.loads((tmp_path / "status.json").read_text())["status"] == status
