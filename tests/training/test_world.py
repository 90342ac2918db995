"""Launches whose numbers could not be trusted are refused by name."""

import re
import subprocess
import sys
import textwrap

import pytest

from harness.training.world import World


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_sharded_launches_are_refused(monkeypatch, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ValueError, match="not supported"):
        World("no")


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision 'fp8' is not supported"):
        World("fp8")


def test_a_world_that_fell_apart_is_refused(monkeypatch):
    from harness.training.world import _check_world

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="asked for 2 processes"):
        _check_world(1)


def test_processes_that_were_never_started_are_refused(monkeypatch):
    from harness.training.world import _check_world

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    _check_world(1)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # what is left of `--cpu --num_processes 2`
    with pytest.raises(ValueError, match="asked for several processes"):
        _check_world(1)


def test_a_failure_on_any_rank_ends_all():
    """Two processes; the second fails before the first collective operation of the first."""
    script = """
        import sys, os
        from harness.training.world import OtherRankFailedError, World
        world = World()
        def work():
            if world.rank == 1:
                raise ValueError("no data here")
            return world.rank
        try:
            world.on_all(work)
        except (ValueError, OtherRankFailedError) as error:
            # in one write, since both processes share the stream
            os.write(1, f"{world.rank} {type(error).__name__}: {error}\\n".encode())
        assert world.on_all(lambda: 7) == 7
        assert world.on_main(lambda: "rank 0") == ("rank 0" if world.rank == 0 else None)
        world.close()
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no-python"]
    command = [*launcher, sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert sorted(re.findall(r"^\d.*$", done.stdout, re.M)) == [
        "0 OtherRankFailedError: process 1 of 2 failed; see its message",
        "1 ValueError: no data here",
    ]
