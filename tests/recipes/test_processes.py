"""Test that one process and several give the same numbers.

Also test that the data are hashed once per node.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.free_port import free_port
from tests.recipes.launching import REPOSITORY, elsewhere, nodes, recipe
from tests.warm import Running, launcher

pytestmark = pytest.mark.long


# a network without batch statistics, trained for three steps
MIXER = ["--model.name", "mlp_mixer_small", "--global-batch-size", "396", "--num-levels", "0", "--optim.lr", "0.02"]
MIXER += ["--data.loader", "memory", "--offline"]


def level_0(prepared: Path, where: Path, epochs: int, processes: int) -> tuple[dict, dict[str, torch.Tensor]]:
    """Train level 0 for `epochs` epochs and return its record and checkpoint."""
    elsewhere(prepared, where)
    recipe(where, "aws_digits.py", *MIXER, "--warmup-epochs", str(epochs), processes=processes)
    (record,) = nodes(where, "level").values()
    return record, load_file(where / "runs" / f"level-{record['key'][:16]}" / "checkpoint.safetensors")


@pytest.fixture(scope="module")
def alone(prepared, tmp_path_factory) -> dict[int, tuple[dict, dict[str, torch.Tensor]]]:
    """Return level 0 of one process, after 0 and 1 epochs.

    Each value is a record and a checkpoint.
    """
    place = tmp_path_factory.mktemp("alone")
    return {epochs: level_0(prepared, place / str(epochs), epochs, 0) for epochs in (0, 1)}


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_after_a_few_steps_the_networks_agree(prepared, alone, tmp_path, processes):
    _, state = level_0(prepared, tmp_path / "1", 1, processes)
    moved = max(float((alone[1][1][name] - alone[0][1][name]).abs().max()) for name in state)
    apart = max(float((alone[1][1][name] - state[name]).abs().max()) for name in state)
    assert apart < 1e-6 < 1e-3 < moved


def test_evaluation_counts_every_image_alike(prepared, alone, tmp_path):
    record, state = level_0(prepared, tmp_path / "0", 0, 3)
    assert all(torch.equal(state[name], alone[0][1][name]) for name in state)
    assert metric(record, "test_error_percent") == metric(alone[0][0], "test_error_percent")


def metric(record: dict, name: str) -> float:
    """Return the last value of a metric."""
    return [value for metric, value, _, _ in record["metrics"] if metric == name][-1]


OPENING = """
import os, sys
from dataclasses import replace
from pathlib import Path
from harness.config import DataConfig, ModelConfig
from harness.data import manifest
from harness.experiment.experiment import Experiment
from harness.lineage.store import open_store
from harness.distributed.world import OtherRankFailedError, World
from recipes.presets.small import digits

def say(word):
    os.write(1, f"{os.environ['RANK']} {word}\\n".encode())  # in one write, since all share the stream

def refuse(path, text):
    raise PermissionError(13, "Permission denied")

real = manifest.sha256_file
manifest.sha256_file = lambda path: say(f"hashes {path.name}") or real(path)
if "read-only" in sys.argv:
    manifest.write_atomically = refuse
where = Path(sys.argv[1])
data = DataConfig("digits", directory=where / "data", loader="memory")
config = replace(digits(), data=data, model=ModelConfig("resnet8", width=2))
world = World()
try:
    for _ in range(1 if "read-only" in sys.argv else 2):
        Experiment(world, open_store(where / "runs", offline=True), config)
    say("opened")
except (ValueError, OtherRankFailedError) as error:
    say(error)
world.close()
"""


def opening(where: Path, processes: int, *options: str, shape: tuple[str, ...] = ()) -> Running:
    """Start several processes under one launcher that open the digits in `where`."""
    words = [*shape, "--nproc_per_node", str(processes), "--no-python", sys.executable, "-c", OPENING, str(where)]
    env = {"PYTHONPATH": str(REPOSITORY), "ACCELERATE_USE_CPU": "true"}
    return launcher(where, *words, *options, **env)


def said(opened: Running) -> dict[str, list[str]]:
    """Check that all processes succeeded; return each rank's output lines."""
    done = opened.ended(240)
    assert done.returncode == 0, done.stderr
    lines: dict[str, list[str]] = {}
    for rank, line in re.findall(r"^(\d) (.*)$", done.stdout, re.M):
        lines.setdefault(rank, []).append(line)
    return lines


@pytest.fixture
def unverified(prepared: Path, tmp_path: Path) -> Path:
    """Return a copy of the digits whose hashes were never checked."""
    shutil.copytree(prepared / "data", tmp_path / "data", ignore=shutil.ignore_patterns(".*.verified"))
    return tmp_path


HASHED = ["hashes train.safetensors", "hashes test.safetensors"]


@pytest.mark.parametrize(
    ("processes", "options"),
    [
        (2, ()),
        # also covered by test_each_node_hashes_its_own_data
        pytest.param(2, ("read-only",), marks=pytest.mark.slow),
        pytest.param(4, (), marks=pytest.mark.slow),
        pytest.param(4, ("read-only",), marks=pytest.mark.slow),
    ],
)
def test_one_process_of_a_node_hashes_the_data(unverified, processes, options):
    found = said(opening(unverified, processes, *options))
    assert found == {"0": [*HASHED, "opened"]} | {str(rank): ["opened"] for rank in range(1, processes)}


def test_each_node_hashes_its_own_data(unverified, tmp_path):
    shutil.copytree(unverified / "data", tmp_path / "other" / "data")
    nodes = ("--nnodes", "2", "--master_port", str(free_port()))
    launchers = [
        opening(place, 2, "read-only", shape=(*nodes, "--node_rank", str(rank)))
        for rank, place in enumerate((unverified, tmp_path / "other"))
    ]
    found = said(launchers[0]) | said(launchers[1])
    assert found == {"0": [*HASHED, "opened"], "1": ["opened"], "2": [*HASHED, "opened"], "3": ["opened"]}


def test_an_altered_file_ends_all_processes(unverified):
    path = unverified / "data" / "digits" / "train.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    found = said(opening(unverified, 2))
    assert found["0"][0] == HASHED[0] and "train.safetensors was altered" in found["0"][1]
    assert found["1"] == ["process 0 of 2 failed; see its message"]
