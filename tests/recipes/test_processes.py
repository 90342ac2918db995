"""The same numbers from one process and from several, as far as they can be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launching import elsewhere, nodes, recipe
from safetensors.torch import load_file

# a network without batch statistics; three steps
MIXER = ["--model.name", "mlp_mixer_small", "--global-batch-size", "396", "--num-levels", "0", "--optim.lr", "0.02"]
MIXER += ["--data.loader", "memory", "--offline"]


def level_0(prepared: Path, where: Path, epochs: int, processes: int) -> tuple[dict, dict[str, torch.Tensor]]:
    """Launch a warm-up of `epochs` and return its record and checkpoint."""
    elsewhere(prepared, where)
    recipe(where, "aws_digits.py", *MIXER, "--warmup-epochs", str(epochs), processes=processes)
    (record,) = nodes(where, "level").values()
    return record, load_file(where / "runs" / f"level-{record['key'][:16]}" / "checkpoint.safetensors")


@pytest.fixture(scope="module")
def alone(prepared, tmp_path_factory) -> dict[int, tuple[dict, dict[str, torch.Tensor]]]:
    """What one process gives after 0 and 1 epochs."""
    place = tmp_path_factory.mktemp("alone")
    return {epochs: level_0(prepared, place / str(epochs), epochs, 1) for epochs in (0, 1)}


@pytest.mark.parametrize("processes", [2, 4])
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
    """The last value of a metric."""
    return [value for metric, value, _, _ in record["metrics"] if metric == name][-1]
