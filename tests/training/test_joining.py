"""Test the join watch while processes start.

Losing a process before all have joined ends the others. A late start does not.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import textwrap
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

pytestmark = pytest.mark.long  # processes, kernels or seconds of waiting

SILENT_SECONDS = 1.0

STORE = """
    import time
    from torch.distributed import TCPStore
    store = TCPStore("127.0.0.1", {port}, is_master=True, wait_for_workers=False)
    Path({here!r}).touch()
    time.sleep(600)
"""
WORKER = """
    import os, sys, time
    from harness.distributed.joining import JoinWatch
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="{port}", TORCHELASTIC_USE_AGENT_STORE="True")
    os.environ.update(RANK="{rank}", LOCAL_RANK="{local_rank}", WORLD_SIZE="{size}")
    with JoinWatch(silent_seconds={silent_seconds}):
        Path({here!r}).touch()
        {script}
"""
JOINS, WAITS, FAILS = "time.sleep(0.5)", "time.sleep(600)", "raise RuntimeError('cannot join')"


class Launch:
    """A launcher's store and the processes that join through it.

    All are forked from a process that has already imported torch.
    """

    def __init__(self, place: Path) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["harness.distributed.joining"])
        self.place, self.processes = place, {}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def start(self, name: str, code: str, **values: object) -> BaseProcess:
        """Fork a process, and wait until its code runs."""
        here = self.place / f"here-{name}"
        code = textwrap.dedent(code).format(port=self.port, here=str(here), **values)
        head = ["import os", "from pathlib import Path"]
        head += [f"os.dup2(os.open({self.said_at(name)!r}, os.O_CREAT | os.O_RDWR), 2)"]
        process = self.context.Process(target=exec, args=("\n".join([*head, code]), {}))
        process.start()
        self.processes[name] = process
        until = time.monotonic() + 30
        while not here.exists():
            assert process.is_alive() and time.monotonic() < until
            time.sleep(0.01)
        return process

    def begin(self, *scripts: str, local: bool = False) -> list[BaseProcess]:
        """Start the store, then one process per nonempty script."""
        self.start("store", STORE)
        return [self.add(rank, len(scripts), script, local=local) for rank, script in enumerate(scripts) if script]

    def add(self, rank: int, size: int, script: str, *, local: bool = False) -> BaseProcess:
        """Start one process, and wait until it has begun to join."""
        values = {"rank": rank, "size": size, "local_rank": rank if local else 0, "script": script}
        return self.start(str(rank), WORKER, silent_seconds=SILENT_SECONDS, **values)

    def said_at(self, name: str) -> str:
        return str(self.place / f"said-{name}")

    def ended(self, rank: int, seconds: float) -> tuple[int | None, str]:
        """Return exit code and standard error; the process must end within `seconds`."""
        process = self.processes[str(rank)]
        process.join(seconds)
        return process.exitcode, Path(self.said_at(str(rank))).read_text().strip()


@pytest.fixture
def launch(tmp_path) -> Iterator[Launch]:
    made = Launch(tmp_path)
    yield made
    for process in made.processes.values():
        process.kill()
        process.join()


@pytest.mark.parametrize(("local", "lost"), [(False, 0), (False, 2), (True, 1)])
def test_a_process_killed_while_it_waits_for_others_ends_all(launch: Launch, local: bool, lost: int):
    """Kill one of three waiting processes.

    With `local`, all are on one node, where only its first process watches the others.
    """
    launch.begin(WAITS, WAITS, WAITS, local=local)[lost].kill()
    for rank in {0, 1, 2} - {lost}:
        assert launch.ended(rank, 4 * SILENT_SECONDS) == (
            1,
            f"process {rank} of 3 on {socket.gethostname()} lost process {lost} (it began to join, then sent "
            "nothing for 1 s) before all had joined; ending. Run the same command again to resume from the last saved "
            "state.",
        )


def test_a_process_that_starts_late_is_waited_for(launch: Launch):
    late = 4 * SILENT_SECONDS
    launch.begin(f"time.sleep({late + 2})", f"time.sleep({late + 2})", "")
    time.sleep(late)
    launch.add(2, 3, JOINS)
    assert [launch.ended(rank, 10) for rank in range(3)] == [(0, "")] * 3


def test_a_process_that_starts_late_detects_an_earlier_loss(launch: Launch):
    launch.begin(WAITS, "")[0].kill()
    time.sleep(2 * SILENT_SECONDS)
    launch.add(1, 2, WAITS)
    code, said = launch.ended(1, 4 * SILENT_SECONDS)
    assert code == 1 and "lost process 0 (it began to join" in said


def test_a_process_that_fails_to_join_ends_the_others(launch: Launch):
    launch.begin(WAITS, FAILS)
    assert "cannot join" in launch.ended(1, 10)[1]
    code, said = launch.ended(0, 4 * SILENT_SECONDS)
    assert code == 1 and "lost process 1" in said


def test_a_process_that_has_joined_may_be_silent(launch: Launch):
    launch.begin(JOINS, f"time.sleep({4 * SILENT_SECONDS})")
    assert [launch.ended(rank, 10) for rank in range(2)] == [(0, "")] * 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_loss_of_the_launcher_of_process_0_is_detected(launch: Launch, number: int):
    launch.begin(WAITS, WAITS)
    os.kill(launch.processes["store"].pid, number)
    for rank in range(2):
        code, said = launch.ended(rank, 4 * SILENT_SECONDS)
        assert code == 1 and "lost the launcher of process 0" in said
