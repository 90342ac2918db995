"""Test a search in which one of two processes hangs.

It hangs in the data loader while its heartbeat continues.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from harness.lineage.nodes.record import ERROR_BY_EPOCH
from tests.recipes.launching import LIGHT, REPOSITORY, TINY, elsewhere, nodes, recipe

pytestmark = pytest.mark.long


RECIPE = str(REPOSITORY / "recipes" / "aws_digits.py")
SEARCH = [*TINY, *LIGHT, "--offline", "--num-levels", "1"]
WATCHED = ["--checkpoint-every", "3", "--checkpoint-unit", "steps", "--stuck-after", "0.05", "--evaluate-every", "1"]
HANGING = """
import os, runpy, sys, time
from pathlib import Path
from harness.training.feed import TrainFeed

read = TrainFeed.epoch

def epoch(self, noise, epoch, skip_steps=0, num_steps=None):
    for index, batch in enumerate(read(self, noise, epoch, skip_steps, num_steps), start=skip_steps):
        if os.environ["RANK"] == "1" and (noise.scope[-1], epoch, index) == (0, 1, 7):
            Path("hung").touch()
            time.sleep(600)
        yield batch

TrainFeed.epoch = epoch
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def digests(where: Path) -> dict[str, list[str]]:
    """Return the SHA-256 of each level's checkpoint and mask, by key.

    Neither depends on `--stuck-after` and `--evaluate-every`.
    """
    files = ("checkpoint.safetensors", "signed_mask.safetensors")
    return {record["key"]: [record["files"][file] for file in files] for record in nodes(where, "level").values()}


def test_a_process_that_stops_reading_ends_the_launch_and_the_same_command_continues(prepared, by_two, tmp_path):
    where = elsewhere(prepared, tmp_path / "hung")
    (hanging := tmp_path / "hanging.py").write_text(HANGING)
    said = recipe(where, str(hanging), RECIPE, *SEARCH, *WATCHED, processes=2, ok=False)
    seconds = time.time() - (where / "hung").stat().st_mtime
    lines = [line for line in said.splitlines() if line.startswith("no progress for 0.05 min: process 0 on ")]
    assert len(lines) == 2 and lines[0] == lines[1], said
    assert " epoch 1, computing step 7; process 1 on " in lines[0]
    assert lines[0].endswith(
        " epoch 1, reading the batch of step 7; ending. Run the same command again to resume from the last saved state."
    )
    print(f"ended {seconds:.1f} s after it stopped reading, with 3 s allowed")
    assert 3 < seconds < 15
    assert (
        json.loads((where / "runs" / "status.json").read_text())["status"] == "running"
    )  # tells a script to start the launch again
    assert list((where / "runs").glob(".making-level-*/state-*"))
    recipe(where, "aws_digits.py", *SEARCH, *WATCHED, processes=2)
    found = digests(where)
    errors = [[row[2] for row in one["metrics"] if row[0] == ERROR_BY_EPOCH] for one in nodes(where, "level").values()]
    assert sorted(errors) == [[], [1]]  # the first epoch of level 0, which hung in the second
    assert len(found) == 2 and found.items() < digests(by_two[0]).items()  # the reference search has one more level
