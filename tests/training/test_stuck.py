"""Test the watch for stuck trainings.

A training that makes no progress ends the launch. A slow one does not.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from tests.warm import REPOSITORY, torchrun

STUCK_SECONDS = 3.0
SOON = 8.0
"""Seconds after the limit within which the launch must end. The launcher alone takes up to one."""

SCRIPT = f"""
    import time
    from contextlib import contextmanager
    from pathlib import Path
    from tests.training.small_training import Fixed, Memory, network, run
    from harness.config import Schedule
    from harness.distributed.world import World

    world = World(stuck_after={STUCK_SECONDS / 60})

    def hang():
        Path("hung").touch()
        time.sleep(600)

    def slow(step, seconds):
        '''Return batches that call `seconds` before this step of the first epoch.'''
        class Batches(Fixed):
            def epoch(self, noise, epoch, skip_steps=0):
                for index, batch in enumerate(super().epoch(noise, epoch, skip_steps)):
                    if epoch == 0 and index == step:
                        seconds()
                    yield batch
        return Batches()
"""


def launch(where: Path, script: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Launch two processes; return their result and the seconds to end.

    The seconds count from the moment a process hangs.
    """
    program = textwrap.dedent(SCRIPT) + textwrap.dedent(script)
    env = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = torchrun(2, where, "--no-python", sys.executable, "-c", program, **env)
    ended = time.time()
    hung = where / "hung"
    return done, ended - hung.stat().st_mtime if hung.exists() else 0.0


IN_READING = """
    run(network(), world, batches=slow(2, hang) if world.rank == 1 else Fixed())
"""
BEFORE_BACKWARD = """
    steps = []

    @contextmanager
    def view(alpha):
        steps.append(alpha)
        if len(steps) == 3 and world.rank == 1:
            hang()
        yield

    run(network(), world, view=view)
"""
IN_SAVING = """
    class Saver(Memory):
        def save(self, state):
            world.on_main(lambda: hang() if state.step == 3 else None)

    run(network(), world, saver=Saver(world))
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("script", "places"),
    [
        pytest.param(IN_READING, ["computing step 2", "reading the batch of step 2"], marks=pytest.mark.slow),
        pytest.param(BEFORE_BACKWARD, ["computing step 2", "computing step 2"], marks=pytest.mark.slow),
        (IN_SAVING, ["meeting or saving after step 2"] * 2),
    ],
    ids=["reading", "before_backward", "saving"],
)
def test_a_process_that_stands_still_in_a_training_ends_the_launch(tmp_path, script, places):
    done, seconds = launch(tmp_path, script)
    assert done.returncode != 0
    host = socket.gethostname()
    each = "; ".join(f"process {rank} on {host}: aws L00 epoch 0, {place}" for rank, place in enumerate(places))
    line = f"no progress for 0.05 min: {each}; ending. Run the same command again to resume from the last saved state."
    # torchrun ends the other process as soon as one has failed, at times before it has written the same line
    assert line in done.stderr.splitlines(), done.stderr
    print(f"ended {seconds:.1f} s after it stood still, with {STUCK_SECONDS:g} s allowed")
    assert STUCK_SECONDS < seconds < STUCK_SECONDS + SOON


@pytest.mark.long
def test_slow_work_ends_nothing(tmp_path):
    """Delay work of rank 0, a first batch, every later step, and an evaluation within the training."""
    # Phase: all kinds of slow work in one launch
    done, _ = launch(
        tmp_path,
        f"""
        world.on_main(lambda: time.sleep({1.3 * STUCK_SECONDS}))
        first = slow(0, lambda: time.sleep({1.3 * STUCK_SECONDS}))
        run(network(), world, batches=first if world.rank == 1 else Fixed())
        world.on_main(lambda: time.sleep({1.3 * STUCK_SECONDS}))

        class Batches(Fixed):
            def epoch(self, noise, epoch, skip_steps=0):
                for index, batch in enumerate(super().epoch(noise, epoch, skip_steps)):
                    # the first batch is fast; two later ones together take longer than the limit
                    time.sleep({0.8 * STUCK_SECONDS} if world.rank == 1 and index else 0)
                    yield batch

        def evaluating(report):
            with world.unwatched():
                world.on_main(lambda: time.sleep({1.3 * STUCK_SECONDS}))

        run(network(), world, batches=Batches(), schedule=Schedule(1, "constant"), on_epoch=evaluating)
        print("done")
        world.close()
        """,
    )
    assert done.returncode == 0 and done.stdout.count("done") == 2, done.stderr
    assert "no progress" not in done.stderr


@pytest.mark.long
def test_gradients_use_a_process_group_of_their_own(tmp_path):
    """Check that other communication uses a second process group.

    It is on the CPU and has a timeout of hours. Closing the world destroys both groups.
    """
    # Phase: count the group and device of every collective operation
    done, _ = launch(
        tmp_path,
        """
        import os, torch, torch.distributed as dist

        used = []
        for name in ("all_reduce", "broadcast"):
            def spy(tensor, *args, group=None, kept=getattr(dist, name), **options):
                used.append((group is None or group is dist.group.WORLD, tensor.device.type))
                return kept(tensor, *args, group=group, **options)
            setattr(dist, name, spy)
        mine = torch.ones(3)
        assert world.sum(mine).tolist() == [2.0] * 3 and mine.tolist() == [1.0] * 3
        world.min(mine), world.any(False), world.main_says(lambda: True)
        world.share({"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.tensor(3), "c": torch.ones(2) > 0})
        assert world.share({"a": torch.tensor(2.0).to(torch.float8_e4m3fn)})["a"].float().item() == 2
        world.require_equal("this", "ab"), world.on_main(int), world.on_all(int)
        assert len(used) > 8 and set(used) == {(False, "cpu")}, used
        limits = [
            group._get_backend(torch.device("cpu")).options._timeout.total_seconds()
            for group in (dist.group.WORLD, world._waiting)
        ]
        world.close()
        os.write(1, f"{limits} {dist.is_initialized()}\\n".encode())
        """,
    )
    # Phase: timeouts of both groups in seconds, and no group left after closing
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[600.0, 21600.0] False\n" * 2


def test_one_process_has_no_group_and_is_not_watched(world):
    assert world._waiting is None
    tensor = torch.ones(3)
    assert world.sum(tensor) is tensor and world.min(tensor) is tensor
    with world.watching("aws L00") as place:
        place.at = 1, 2, "computing step"
