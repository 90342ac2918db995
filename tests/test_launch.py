"""Test how commands end: closed pipes, errors, and the time limit of a stuck training."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

import harness.cli.launch
from harness.cli import resolve
from harness.config import Schedule, TicketConfig
from harness.config.search import to_json
from recipes.presets.small import digits

SCRIPT = """
from harness.cli.errors import clear_errors
with clear_errors():
    {body}
"""


def start(body: str) -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT.format(body=body)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.long
@pytest.mark.parametrize("flush", ["True", "False"])
def test_a_closed_output_pipe_is_no_error(flush: str):
    """Close the pipe early, as `… --list | head` does."""
    process = start(f"for _ in range(100_000): print('one run', flush={flush})")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert (process.stderr.read(), process.wait(60)) == ("", 0)


@pytest.mark.long
def test_any_other_broken_pipe_is_an_error():
    said = start("raise BrokenPipeError(32, 'the server hung up')").communicate(timeout=60)[1]
    assert "error: [Errno 32] the server hung up\n" in said


@pytest.mark.parametrize("config", [replace(digits(), stuck_after=3.5), TicketConfig("a ticket", stuck_after=3.5)])
def test_the_stuck_limit_reaches_the_world(monkeypatch, config):
    class Reached(Exception):
        pass

    def world(*args: object, stuck_after: float = 0.0, **options: object) -> None:
        raise Reached(stuck_after)

    monkeypatch.setattr(harness.cli.launch, "World", world)
    launch = harness.cli.launch.launch_ticket if isinstance(config, TicketConfig) else harness.cli.launch.launch
    with pytest.raises(Reached, match=r"3\.5"), launch(config):
        pass


def test_another_length_moves_the_recorded_milestones(monkeypatch: pytest.MonkeyPatch):
    recorded = {"search": to_json(replace(digits(), final=Schedule(160, "step", (80, 120))))}
    record = SimpleNamespace(kind="level", key="0" * 64, name="L00", config=recorded)
    monkeypatch.setattr(resolve, "resolve_record", lambda *_: record)
    alone: Any = SimpleNamespace(share_text=lambda text: text, on_main=lambda read: read())
    for epochs, final in ((20, Schedule(20, "step", (10, 15))), (None, Schedule(160, "step", (80, 120)))):
        _, settings, _ = resolve.resolve_ticket(alone, Any, TicketConfig("0", epochs=epochs), ("level",))
        assert settings.final == final
