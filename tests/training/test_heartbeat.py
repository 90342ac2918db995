"""Test the heartbeat: losing one process ends all others soon."""

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

from harness.distributed.heartbeat import COMPUTING, MEETING, READING, Heartbeat, Place, _Peer, frame, take_frames

SILENT_SECONDS = 2.0
REPOSITORY = Path(__file__).resolve().parents[2]

# plain processes share text through a file that rank 0 writes atomically
WORKER = """
    import os, sys, threading, time
    from pathlib import Path
    from harness.distributed.heartbeat import Heartbeat

    rank, size, meeting = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])

    def share_text(text):
        if rank == 0:
            meeting.with_suffix(".new").write_text(text)
            meeting.with_suffix(".new").rename(meeting)
        while not meeting.exists():
            time.sleep(0.01)
        return meeting.read_text()

    pulse = Heartbeat(rank, size, share_text, silent_seconds={silent_seconds}, stuck_seconds={stuck_seconds})
    (meeting.parent / f"here-{{rank}}").touch()
"""
BLOCKED = """
    import ctypes
    ctypes.CDLL(None).pause()  # waits in C without the interpreter lock, as a collective operation does
"""


@pytest.fixture
def launch(tmp_path) -> Iterator[Callable[..., list[subprocess.Popen]]]:
    """Yield a function that starts processes and waits until they joined.

    It runs one process per script.
    """
    started: list[subprocess.Popen] = []

    def start(*scripts: str, stuck_seconds: float = 0) -> list[subprocess.Popen]:
        for rank, script in enumerate(scripts):
            limits = {"silent_seconds": SILENT_SECONDS, "stuck_seconds": stuck_seconds}
            code = textwrap.dedent(WORKER).format(**limits) + textwrap.dedent(script)
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
    """Wait until `done()` is true; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)


def ended(process: subprocess.Popen, seconds: float) -> tuple[int, str]:
    """Return exit code and standard error; the process must end within `seconds`."""
    _, stderr = process.communicate(timeout=seconds)
    return process.returncode, stderr.strip()


@pytest.mark.long
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_all_others_at_once(launch, killed):
    processes = launch(BLOCKED, BLOCKED, BLOCKED)
    processes[killed].kill()
    for rank in {0, 1, 2} - {killed}:
        code, line = ended(processes[rank], SILENT_SECONDS)  # sooner than the silence limit
        host = socket.gethostname()
        # after the loss of rank 0, the others know only of that
        lost = killed if rank == 0 else 0
        assert code == 1 and line == (
            f"process {rank} of 3 on {host} lost process {lost} on {host} (its connection closed); ending. "
            "Run the same command again to resume from the last saved state."
        )


@pytest.mark.long
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_silent_process_ends_all_others(launch, stopped):
    processes = launch(BLOCKED, BLOCKED, BLOCKED)
    processes[stopped].send_signal(signal.SIGSTOP)
    others = {0, 1, 2} - {stopped}
    lines = {}
    for rank in others:
        code, lines[rank] = ended(processes[rank], 4 * SILENT_SECONDS)
        assert code == 1
    assert f"process {stopped} on {socket.gethostname()} (no message for 2 s)" in lines[min(others)]
    processes[stopped].send_signal(signal.SIGCONT)
    assert ended(processes[stopped], 2 * SILENT_SECONDS)[0] == 1


EARLY = "pulse.close()"
LATE = f"time.sleep({2 * SILENT_SECONDS})\npulse.close()\npulse.close()"
FAILED = f"pulse.announce_leaving(failed=True)\ntime.sleep({SILENT_SECONDS / 2})\npulse.close()"


@pytest.mark.long
@pytest.mark.parametrize("scripts", [(EARLY, LATE, EARLY), (LATE, EARLY, EARLY), (FAILED, FAILED, FAILED)])
def test_a_clean_end_prints_no_message(launch, scripts):
    """Close all processes in order.

    Some close long before the others, or after all have failed.
    """
    assert [ended(process, 30) for process in launch(*scripts)] == [(0, "")] * 3


@pytest.mark.long
@pytest.mark.parametrize(
    ("failed", "why", "last_words"),
    [(True, "it failed; see its message", "process 1 failed"), (False, "it timed out waiting for this one", "")],
)
def test_a_process_that_leaves_alone_ends_the_others(launch, tmp_path, failed, why, last_words):
    """Let one process leave before the others.

    If it failed, rank 0 writes its last words. If it only timed out, it does not, and the same command can resume.
    """
    words = tmp_path / "last words"
    words.touch()
    first = f"pulse.last_words = Path({str(words)!r}).write_text\n{textwrap.dedent(BLOCKED)}"
    processes = launch(first, f"pulse.announce_leaving(failed={failed})\npulse.close()\nsys.exit(3)", BLOCKED)
    assert ended(processes[1], SILENT_SECONDS) == (3, "")
    code, line = ended(processes[0], 3 * SILENT_SECONDS)
    assert code == 1 and "lost process 1" in line and f"({why})" in line
    assert ended(processes[2], SILENT_SECONDS)[0] == 1
    assert words.read_text() == last_words, "last words are written before the process ends"


@pytest.mark.long
def test_an_exit_without_close_counts_as_a_loss(launch):
    processes = launch(BLOCKED, "raise RuntimeError('nobody closed')")
    code, line = ended(processes[0], 10)
    assert code == 1 and "lost process 1" in line


@pytest.mark.long
def test_foreign_connections_are_closed(launch, tmp_path):
    processes = launch(LATE, LATE)
    port, token, _ = json.loads((tmp_path / "meeting").read_text())
    for call in (b"GET / HTTP/1.0\r\n\r\n", b'["wrong", 1, "me"]\n', b"5\n", f'["{token}", 1, "twice"]\n'.encode()):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as link:
            link.sendall(call)
            assert link.recv(1) == b""
    assert [ended(process, 30) for process in processes] == [(0, "")] * 2


TRAINING = """
    from harness.distributed.heartbeat import COMPUTING, MEETING, READING, Place
    pulse.place = place = Place(f"L0{rank}")
    place.at, place.begun = (2, 17, MEETING), True
    def take_steps(count, seconds):
        for step in range(18, 18 + count):
            place.at = 2, step, COMPUTING
            time.sleep(seconds)
"""
STUCK_SECONDS = 1.5


def training(script: str) -> str:
    """Return a script that enters a training and then runs `script`."""
    return textwrap.dedent(TRAINING) + textwrap.dedent(script)


@pytest.mark.long
def test_a_training_that_stands_still_ends_all_processes(launch):
    reads = training(f"place.at = 2, 18, READING\n{textwrap.dedent(BLOCKED)}")
    waits = training(f"place.at = 2, 18, COMPUTING\n{textwrap.dedent(BLOCKED)}")
    began = time.monotonic()
    processes = launch(waits, reads, waits, stuck_seconds=STUCK_SECONDS)
    ends = [ended(process, STUCK_SECONDS + 10) for process in processes]
    assert time.monotonic() - began > STUCK_SECONDS
    host = socket.gethostname()
    assert (
        ends
        == [
            (
                1,
                f"no progress for 0.025 min: process 0 on {host}: L00 epoch 2, computing step 18; "
                f"process 1 on {host}: L01 epoch 2, reading the batch of step 18; "
                f"process 2 on {host}: L02 epoch 2, computing step 18; ending. "
                "Run the same command again to resume from the last saved state.",
            )
        ]
        * 3
    )


LONG = 3 * STUCK_SECONDS
UNHURRIED = {
    "steps of less than the limit": (training(f"take_steps(4, {0.8 * STUCK_SECONDS})"),) * 2,
    "no training": (f"time.sleep({LONG})",) * 2,
    "a first step": (training(f"place.begun = False\ntime.sleep({LONG})"),) * 2,
    "a first step of another": (training(f"time.sleep({LONG})"), training(f"place.begun = False\ntime.sleep({LONG})")),
    "after a training": (training(f"take_steps(2, 0.1)\npulse.place = None\ntime.sleep({LONG})"),) * 2,
}


@pytest.mark.long
@pytest.mark.parametrize("case", list(UNHURRIED))
def test_work_that_may_take_longer_than_the_limit_ends_no_process(launch, case):
    scripts = [f"{textwrap.dedent(script)}\npulse.place = None\npulse.close()" for script in UNHURRIED[case]]
    assert [ended(process, 30) for process in launch(*scripts, stuck_seconds=STUCK_SECONDS)] == [(0, "")] * 2


@pytest.mark.long
def test_the_watch_begins_when_all_have_done_their_first_step(launch):
    """Start the watch only when every process has finished a step.

    Process 1 finishes its first step after process 0 has waited for longer than the limit.
    """
    waits = training(f"time.sleep({LONG})\ntake_steps(3, 0.1)\npulse.close()")
    late = training(
        f"place.begun = False\ntime.sleep({LONG - 0.5})\nplace.begun = True\ntime.sleep(0.5)\npulse.close()"
    )
    assert [ended(process, 30) for process in launch(waits, late, stuck_seconds=STUCK_SECONDS)] == [(0, "")] * 2


@pytest.mark.long
def test_a_launch_that_was_suspended_as_a_whole_continues(launch):
    """Suspend all processes during steps of half the limit.

    The suspension does not count.
    """
    steps = training(f"take_steps(3, {STUCK_SECONDS})\npulse.close()")
    processes = launch(steps, steps, stuck_seconds=2 * STUCK_SECONDS)
    time.sleep(0.3)
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    time.sleep(3 * STUCK_SECONDS)
    for process in processes:
        process.send_signal(signal.SIGCONT)
    assert [ended(process, 30) for process in processes] == [(0, "")] * 2


def test_messages_are_parsed_however_they_are_split():
    said = [
        (b".", "L03 epoch 2, computing step 18"),
        (b"x", ""),
        (b"#", "no progress; " * 10_000),
        (b".", "α"),
        (b"!", ""),
    ]
    wire = b"".join(frame(kind, text) for kind, text in said)
    for size in (1, 4, 7, 4096, len(wire)):
        received, taken = bytearray(), []
        for start in range(0, len(wire), size):
            received += wire[start : start + size]
            taken += take_frames(received)
        assert taken == said and not received


def test_a_full_connection_drops_only_heartbeats():
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        peer, sent = _Peer(1, 0.0, link=near), 0
        verdict = frame(b"#", "v" * 300_000)  # larger than the socket's send buffer
        while not peer.unsent:
            peer.tell(frame(b".", "b" * 1000), needed=False)
            sent += 1
        peer.tell(frame(b".", "left out"), needed=False)
        peer.tell(verdict)
        far.settimeout(10)
        received, taken = bytearray(), []
        while len(taken) < sent + 1:
            received += far.recv(4096)
            taken += take_frames(received)
            peer.tell(frame(b".", "left out"), needed=False) if peer.unsent else None
    assert [kind for kind, _ in taken] == [b"."] * sent + [b"#"]
    assert {text for _, text in taken} == {"b" * 1000, "v" * 300_000}


def test_a_place_is_shown_only_after_the_first_step():
    place = Place("aws L03")
    said = [str(place)]
    for at in ((0, 0, READING), (0, 0, COMPUTING)):
        place.at = at
        said.append(str(place))
    place.at, place.begun = (0, 0, MEETING), True
    assert said == [""] * 3 and str(place) == "aws L03 epoch 0, meeting or saving after step 0"


def test_a_world_of_one_has_neither_thread_nor_socket():
    def share_text(text: str) -> str:
        raise AssertionError("nothing to share")

    before = threading.active_count(), len(os.listdir("/proc/self/fd"))
    pulse = Heartbeat(0, 1, share_text)
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before
    pulse.announce_leaving(failed=True)
    pulse.close()


def test_an_unreachable_main_process_is_an_error_with_its_address(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ConnectionError, match=rf"process 1 of 2 on .* cannot reach process 0 at 127.0.0.1:{port}"):
        Heartbeat(1, 2, lambda text: json.dumps([port, "token", "host"]))


@pytest.mark.long
@pytest.mark.slow
def test_rank_0_may_work_alone_for_longer_than_late_processes_are_waited_for():
    script = """
        import time
        from datetime import timedelta
        from harness.distributed import world
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
