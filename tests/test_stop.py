"""Test what asks a launch to stop, and that each wait heeds it and counts by its own clock."""

from __future__ import annotations

import os
import pty
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import redirect_stderr

import pytest

from harness.cli.errors import clear_errors
from harness.common import waiting
from harness.common.waiting import heed, wait_until
from harness.distributed import world
from harness.distributed.stop import StoppedError
from harness.distributed.world import SIGNALS, StopRequest


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGINT", "SIGHUP", "SIGQUIT"])
def test_each_signal_asks_to_stop_and_is_left_as_it_was(handlers: None, name: str) -> None:
    number, request = signal.Signals[name], StopRequest()
    before = signal.getsignal(number)
    with request.listening():
        heed()
        os.kill(os.getpid(), number)
        assert request.reason == f"got {name}"
        with pytest.raises(StoppedError, match=name):
            heed()
    assert signal.getsignal(number) is before
    heed()


@pytest.mark.parametrize(
    ("first", "second", "after", "launched", "ends"),
    [
        ("SIGINT", "SIGINT", 0.5, False, True),
        ("SIGTERM", "SIGINT", 0.5, False, True),
        ("SIGTERM", "SIGQUIT", 0.5, False, True),
        ("SIGINT", "SIGINT", 0.05, False, False),  # `timeout` sends it twice
        ("SIGINT", "SIGINT", 0.5, True, False),  # the launcher passes it on
        ("SIGINT", "SIGINT", 3.0, True, True),
        ("SIGTERM", "SIGTERM", 3.0, False, False),  # the launcher and the batch system both send it
        ("SIGTERM", "SIGTERM", 11.0, True, True),
        ("SIGHUP", "SIGTERM", 3.0, False, False),
    ],
)
def test_a_repeated_signal_ends_the_process(
    handlers: None,
    monkeypatch: pytest.MonkeyPatch,
    first: str,
    second: str,
    after: float,
    launched: bool,
    ends: bool,
) -> None:
    monkeypatch.setattr(world, "_LAUNCHED", ("PATH",) if launched else ())
    request, killed, words = StopRequest(), list[int](), list[str]()
    request.last_words = words.append
    now = 100.0
    monkeypatch.setattr(world.time, "monotonic", lambda: now)
    request._remember(signal.Signals[first], None)
    now += after
    monkeypatch.setattr(world.os, "kill", lambda pid, number: killed.append(number))
    request._remember(signal.Signals[second], None)
    assert killed == ([signal.Signals[second]] if ends else [])
    assert words == ([f"got {first}, then {second} again"] if ends else [])


def test_under_nohup_a_closed_terminal_is_ignored(handlers: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    request = StopRequest()
    with request.listening():
        os.kill(os.getpid(), signal.SIGHUP)
    assert request.reason is None and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_shell_script_can_interrupt_its_background_command(handlers: None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # so a shell without job control starts commands with &
    request = StopRequest()
    with request.listening():
        os.kill(os.getpid(), signal.SIGINT)
    assert request.reason == "got SIGINT"


def test_a_wait_has_a_limit_by_its_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(waiting, "LONGEST_PAUSE", 0.01)
    began = time.monotonic()
    assert not wait_until(lambda: bool(asked.append(time.monotonic())), 0.1, pause=0.03)
    assert not wait_until(lambda: False, 0.01, pause=10)  # a limit shorter than the pause
    assert 0.1 <= time.monotonic() - began < 5 and len(asked) >= 2
    assert wait_until(lambda: True, 0) and wait_until(lambda: True)
    answers = iter([False, False, True])
    assert wait_until(lambda: next(answers), pause=0.01)


def test_a_wait_ends_with_a_request_to_stop_but_not_in_another_thread(handlers: None) -> None:
    request, ended = StopRequest(), list[bool]()
    with request.listening():
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(StoppedError):
            wait_until(lambda: False)
        other = threading.Thread(target=lambda: ended.append(wait_until(lambda: False, 0.05)))
        other.start()
        other.join()
    assert ended == [False]


@pytest.mark.parametrize(("error", "code"), [(StoppedError("got SIGHUP"), 75), (ValueError("no"), 1)], ids=str)
def test_a_closed_terminal_changes_no_exit_code(error: Exception, code: int) -> None:
    reader, terminal = pty.openpty()
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    os.close(reader)
    try:
        for descriptor in (1, 2):
            os.dup2(terminal, descriptor)
        with open(2, "w", closefd=False) as stream, redirect_stderr(stream):
            with pytest.raises(SystemExit) as caught, clear_errors():
                raise error
            os.write(1, b"x")  # discarded, like the output that Python still buffers when it ends
    finally:
        for descriptor, before in zip((1, 2), kept, strict=True):
            os.dup2(before, descriptor)
            os.close(before)
        os.close(terminal)
    assert caught.value.code == code
