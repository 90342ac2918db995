"""Test the world of processes: refused launches, lost processes and precision."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from harness.distributed.world import World
from tests.free_port import free_port
from tests.training.small_training import open_world
from tests.warm import REPOSITORY, launcher, torchrun


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_sharded_launches_are_refused(monkeypatch, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ValueError, match="not supported"):
        World("no")


def test_the_device_is_announced_once(world, monkeypatch, capfd):
    monkeypatch.setattr(world, "_announced", False)
    world.announce()
    world.announce()
    assert re.fullmatch(r"1 CPU process \(\w+\), \d+ threads?\n", capfd.readouterr().err)


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision 'fp8' is not supported"):
        World("fp8")


def test_a_launch_that_became_single_processes_is_refused(monkeypatch):
    from harness.distributed.world import _check_world

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="asked for 2 processes"):
        _check_world(1)


def test_processes_that_were_never_started_are_refused(monkeypatch):
    from harness.distributed.world import _check_world

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    _check_world(1)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # `accelerate launch --cpu --num_processes 2` sets it
    with pytest.raises(ValueError, match="asked for several processes"):
        _check_world(1)


@pytest.mark.long
def test_a_failure_on_any_rank_ends_all():
    """Let the second of two processes fail before the first collective operation."""
    # Phase: run two processes that print their errors
    script = """
        import sys, os
        from harness.distributed.world import OtherRankFailedError, World
        world = World()
        def work():
            if world.rank == 1:
                raise ValueError("no data here")
            return world.rank
        try:
            world.on_all(work)
        except (ValueError, OtherRankFailedError) as error:
            # a single write, because both processes share the stream
            os.write(1, f"{world.rank} {type(error).__name__}: {error}\\n".encode())
        assert world.on_all(lambda: 7) == 7
        world.require_equal("the mask of level 3", "ab" * 32)
        try:
            world.require_equal("the mask of level 4", f"{world.rank}" * 64)
        except ValueError as error:
            os.write(1, f"{world.rank} {error}\\n".encode())
        assert world.on_main(lambda: "rank 0") == ("rank 0" if world.rank == 0 else None)
        world.close()
    """
    done = torchrun(2, REPOSITORY, "--no-python", sys.executable, "-c", textwrap.dedent(script))
    assert done.returncode == 0, done.stderr
    # Phase: each process reports its own error or that of the other
    assert sorted(re.findall(r"^\d.*$", done.stdout, re.M)) == [
        "0 OtherRankFailedError: process 1 of 2 failed; see its message",
        "0 the mask of level 4 differs between processes (rank 0 has 000000000000…)",
        "1 ValueError: no data here",
        "1 the mask of level 4 differs between processes (rank 1 has 111111111111…)",
    ]


ON_CPU = {"PYTHONPATH": str(REPOSITORY), "ACCELERATE_USE_CPU": "true"}


def two_nodes(script: str) -> list[list[str]]:
    """Return the arguments of two launchers, as on two nodes.

    Each starts one of two processes.
    """
    shape = ["--nnodes", "2", "--master_addr", "127.0.0.1", "--master_port", str(free_port()), "--nproc_per_node", "1"]
    program = ["--no-python", sys.executable, "-c", textwrap.dedent(script)]
    return [[*shape, "--node_rank", node, *program] for node in ("0", "1")]


@pytest.mark.long
def test_a_process_lost_before_it_begins_to_join_ends_the_launch():
    """Kill process 1 before it imports the harness.

    Process 0 detects the end of its launcher.
    """
    # Phase: start two launchers
    nodes = two_nodes("""
        import os, signal, time
        if os.environ["RANK"] == "1":
            time.sleep(2.0)
            os.kill(os.getpid(), signal.SIGKILL)
        from harness.distributed.world import World
        World()
    """)
    launchers = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *words],
            env={**os.environ, **ON_CPU},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for words in nodes
    ]
    # Phase: both end with an error
    try:
        said = [one.communicate(timeout=60)[1] for one in launchers]
    finally:
        for one in launchers:
            one.kill()
    assert [one.returncode for one in launchers] == [1, 1]
    assert "process 0 of 2 on" in said[0] and "lost the launcher of a node (at 127.0.0.1; it ended" in said[0]


@pytest.mark.long
def test_a_process_lost_before_all_have_joined_ends_the_launch(tmp_path):
    """Kill process 1 while it waits for process 0.

    Process 0 starts late. Both launchers must end.
    """
    # Phase: process 1 writes its PID when it begins to join; process 0 waits for the file `go`
    script = f"""
        import os, time
        from pathlib import Path
        from harness.distributed import joining as rollcall
        from harness.distributed import world
        place, rank = Path({str(tmp_path)!r}), os.environ["RANK"]

        class JoinWatch(rollcall.JoinWatch):
            def __init__(self):
                super().__init__(silent_seconds=2.0)

            def __enter__(self):
                begun = super().__enter__()
                self._begun.wait(60)
                if rank == "1":
                    (place / "pid.new").write_text(str(os.getpid()))
                    (place / "pid.new").rename(place / "pid")
                return begun

        world.JoinWatch = JoinWatch
        while rank == "0" and not (place / "go").exists():
            time.sleep(0.05)
        world.World()
    """
    launchers = [launcher(tmp_path, *words, **ON_CPU) for words in two_nodes(script)]
    # Phase: kill process 1, then let process 0 start
    try:
        until = time.monotonic() + 60
        while not (tmp_path / "pid").exists():
            assert time.monotonic() < until
            time.sleep(0.05)
        time.sleep(0.5)  # process 1 now waits for process 0
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        (tmp_path / "go").touch()
        ended = [one.ended(30) for one in launchers]
    finally:
        for one in launchers:
            one.kill()
    assert [one.returncode for one in ended] == [1, 1]
    said = ended[0].stderr
    # detected first by the join watch, or by gloo when its connection is refused
    noticed = ("lost process 1 (it began to join", "lost the launcher of a node (at", "could not join the others: ")
    assert "process 0 of 2 on" in said and any(words in said for words in noticed)


@pytest.mark.parametrize(
    ("cuda", "bf16", "becomes"), [(False, False, "no"), (False, True, "no"), (True, True, "bf16"), (True, False, "no")]
)
def test_precision_auto_is_bf16_where_the_cuda_device_has_it(world, monkeypatch, cuda, bf16, becomes):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16 and not including_emulation)
    monkeypatch.setattr(world, "device", torch.device("cuda" if cuda else "cpu"))
    assert world._best_precision() == becomes
    monkeypatch.setattr(world, "any", lambda flag: True)  # the device of another process lacks bf16
    assert world._best_precision() == "no"


def test_precision_auto_records_and_prints_the_chosen_precision(capfd):
    for world in open_world("auto"):
        assert world.precision == "no"
        assert str(world).startswith("1 CPU process (") and str(world).endswith(", precision no (--precision auto)")
        world._use("bf16")
        world._chosen_by = " (--precision auto)"
        assert str(world).endswith(", precision bf16 (--precision auto)")


def test_cudnn_benchmarks_kernels_unless_deterministic(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    for _ in open_world("no"):
        assert torch.backends.cudnn.benchmark
    try:
        World.make_deterministic()
        assert not torch.backends.cudnn.benchmark
        assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(False)
