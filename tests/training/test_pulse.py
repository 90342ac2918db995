"""A launch that has lost a process ends everywhere, soon, with one line; one that ends in order says nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.training.pulse import Pulse

SILENT_SECONDS = 2.0
REPOSITORY = Path(__file__).resolve().parents[2]

# share_text of plain processes: a file that rank 0 puts in place whole
WORKER = """
    import os, sys, threading, time
    from pathlib import Path
    from harness.training.pulse import Pulse

    rank, size, meeting = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])

    def share_text(text):
        if rank == 0:
            meeting.with_suffix(".new").write_text(text)
            meeting.with_suffix(".new").rename(meeting)
        while not meeting.exists():
            time.sleep(0.01)
        return meeting.read_text()

    pulse = Pulse(rank, size, share_text, silent_seconds={silent_seconds})
    (meeting.parent / f"here-{{rank}}").touch()
"""
BLOCKED = """
    import ctypes
    ctypes.CDLL(None).pause()  # waits in C without the interpreter lock, as a collective operation does
"""


@pytest.fixture
def launch(tmp_path) -> Iterator[Callable[..., list[subprocess.Popen]]]:
    """A function that starts one process for each given script and returns them once all have joined."""
    started: list[subprocess.Popen] = []

    def start(*scripts: str) -> list[subprocess.Popen]:
        for rank, script in enumerate(scripts):
            code = textwrap.dedent(WORKER).format(silent_seconds=SILENT_SECONDS) + textwrap.dedent(script)
            command = [sys.executable, "-c", code, str(rank), str(len(scripts)), str(tmp_path / "meeting")]
            env = {**os.environ, "MASTER_ADDR": "127.0.0.1"}
            started.append(subprocess.Popen(command, cwd=REPOSITORY, env=env, stderr=subprocess.PIPE, text=True))
        wait_until(lambda: all((tmp_path / f"here-{rank}").exists() for rank in range(len(scripts))))
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_until(done: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for `done` to become true."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def ended(process: subprocess.Popen, seconds: float) -> tuple[int, str]:
    """Return exit code and standard error of a process that must end within `seconds`."""
    _, stderr = process.communicate(timeout=seconds)
    return process.returncode, stderr.strip()


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_all_others_at_once(launch, killed):
    processes = launch(BLOCKED, BLOCKED, BLOCKED)
    processes[killed].kill()
    for rank in {0, 1, 2} - {killed}:
        code, line = ended(processes[rank], SILENT_SECONDS)  # sooner than silence would tell
        host = socket.gethostname()
        # without rank 0 no one is left to say who was lost first
        lost = killed if rank == 0 else 0
        assert code == 1 and line == (
            f"process {rank} of 3 on {host} lost process {lost} on {host} (its connection closed); ending. "
            "The same command again continues from the last saved state."
        )


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_silent_process_ends_all_others(launch, stopped):
    processes = launch(BLOCKED, BLOCKED, BLOCKED)
    processes[stopped].send_signal(signal.SIGSTOP)
    others = {0, 1, 2} - {stopped}
    lines = {}
    for rank in others:
        code, lines[rank] = ended(processes[rank], 4 * SILENT_SECONDS)
        assert code == 1
    assert f"process {stopped} on {socket.gethostname()} (nothing came from it for 2 s)" in lines[min(others)]
    processes[stopped].send_signal(signal.SIGCONT)
    assert ended(processes[stopped], 2 * SILENT_SECONDS)[0] == 1


EARLY = "pulse.close()"
LATE = f"time.sleep({2 * SILENT_SECONDS})\npulse.close()\npulse.close()"
FAILED = f"pulse.announce_failure()\ntime.sleep({SILENT_SECONDS / 2})\npulse.close()"


@pytest.mark.parametrize("scripts", [(EARLY, LATE, EARLY), (LATE, EARLY, EARLY), (FAILED, FAILED, FAILED)])
def test_a_clean_end_says_nothing(launch, scripts):
    """Also where some are done long before the others, and where all failed together."""
    assert [ended(process, 30) for process in launch(*scripts)] == [(0, "")] * 3


def test_a_process_that_fails_alone_takes_the_others_along(launch):
    processes = launch(BLOCKED, "pulse.announce_failure()\npulse.close()\nsys.exit(3)", BLOCKED)
    assert ended(processes[1], SILENT_SECONDS) == (3, "")
    code, line = ended(processes[0], 3 * SILENT_SECONDS)
    assert code == 1 and "lost process 1" in line and "(it failed; see its message)" in line
    assert ended(processes[2], SILENT_SECONDS)[0] == 1


def test_an_end_without_goodbye_is_a_loss(launch):
    processes = launch(BLOCKED, "raise RuntimeError('nobody closed')")
    code, line = ended(processes[0], 10)
    assert code == 1 and "lost process 1" in line


def test_connections_of_others_are_hung_up_on(launch, tmp_path):
    processes = launch(LATE, LATE)
    port, token, _ = json.loads((tmp_path / "meeting").read_text())
    for call in (b"GET / HTTP/1.0\r\n\r\n", b'["wrong", 1, "me"]\n', b"5\n", f'["{token}", 1, "twice"]\n'.encode()):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as link:
            link.sendall(call)
            assert link.recv(1) == b""
    assert [ended(process, 30) for process in processes] == [(0, "")] * 2


def test_a_world_of_one_has_neither_thread_nor_socket():
    def share_text(text: str) -> str:
        raise AssertionError("nothing to share")

    before = threading.active_count(), len(os.listdir("/proc/self/fd"))
    pulse = Pulse(0, 1, share_text)
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before
    pulse.announce_failure()
    pulse.close()


def test_an_unreachable_main_process_is_said_by_name(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ConnectionError, match=rf"process 1 of 2 on .* cannot reach process 0 at 127.0.0.1:{port}"):
        Pulse(1, 2, lambda text: json.dumps([port, "token", "host"]))


@pytest.mark.slow
def test_rank_0_may_work_alone_for_longer_than_late_processes_are_waited_for():
    script = """
        import time
        from datetime import timedelta
        from harness.training import world
        world._JOINING = timedelta(seconds=4)
        joined = world.World()
        joined.on_main(lambda: time.sleep(6))
        print(joined.share_text("after all"))
        joined.close()
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no-python"]
    command = [*launcher, sys.executable, "-c", textwrap.dedent(script)]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.count("after all") == 2, done.stderr
    assert "lost process" not in done.stderr
