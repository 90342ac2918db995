"""Test comparisons on several processes and in bfloat16.

The reference is one process in full precision.
"""

from __future__ import annotations

import json
import shutil
from copy import copy
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch

from harness.analysis.barrier import BarrierCurve
from harness.distributed import world as world_module
from harness.distributed.world import World
from harness.experiment.comparison import _BatchNormImages
from harness.experiment.experiment import Experiment
from harness.experiment.final import Trial, final_training
from harness.experiment.search import search
from tests.pruning.comparing import CONVENTIONS, asked, opened
from tests.warm import torchrun

IMAGE = 0.2
"""Error of one test image of 500, in percentage points."""
KEYS = tuple[str, str, str]


def check_same_in_bfloat16(ours: BarrierCurve, reference: BarrierCurve) -> None:
    """Check two curves of which at least one is in bfloat16.

    With 8 significant bits, images on the border between two classes change sides, and which ones depends on the CPU.
    No point may differ by more than five images of 500, and points differ on average by at most one.
    """
    differences = np.abs(np.subtract(ours.error_percent, reference.error_percent))
    assert differences.max() <= 5 * IMAGE + 1e-9 and differences.mean() <= IMAGE + 1e-9, differences


@pytest.fixture(scope="module")
def trained(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, KEYS]:
    """Run a search and two trainings from the same start.

    Returns:
        The directory of runs, and the keys of the level and both trainings.
    """
    runs = tmp_path_factory.mktemp("together") / "runs"
    own = opened(experiment.world, experiment.config.data.directory, runs)
    ticket = search(own).ticket
    finals = [final_training(own, Trial("retrain", 2, sgd_seed), ticket) for sgd_seed in (1, 2)]
    return runs, (ticket.key, finals[0].key, finals[1].key)


@pytest.fixture(scope="module")
def alone(experiment: Experiment, trained: tuple[Path, KEYS]) -> list[BarrierCurve]:
    """Return the curves of one process, in a copy of the runs."""
    runs, keys = trained
    own_runs = shutil.copytree(runs, runs.with_name("alone"))
    found = [
        one.curve for one in asked(opened(experiment.world, experiment.config.data.directory, own_runs), *keys) if one
    ]
    assert [one.convention for one in found] == [*CONVENTIONS, "cumulative", "cumulative"]
    assert max(max(one.error_percent) for one in found[:2]) < 10  # chance is 90
    return found


@pytest.mark.parametrize("size", [2, 3, 9])
def test_batchnorm_batches_are_distributed_whole_and_in_order(experiment: Experiment, size: int) -> None:
    """Check that ranks receive the batches of one process in turn.

    Of five batches the first ranks have one more than the others.
    """

    def dealt(rank: int, size: int) -> list[torch.Tensor]:
        own = copy(experiment)
        own.world = SimpleNamespace(rank=rank, size=size, local_size=1, device=torch.device("cpu"))  # type: ignore[assignment]
        return list(_BatchNormImages(own, 5, 200))

    whole, ranks = dealt(0, 1), [dealt(rank, size) for rank in range(size)]
    assert [len(batches) for batches in ranks] == [len(range(rank, 5, size)) for rank in range(size)]
    for index, batch in enumerate(whole):
        assert batch.shape == (200, 1, 8, 8) and torch.equal(batch, ranks[index % size][index // size])


def launch(processes: int, data: Path, runs: Path, keys: KEYS, precision: str) -> tuple[list[BarrierCurve], list[str]]:
    """Run tests/pruning/comparing.py in several processes.

    Args:
        processes: Number of processes.
        data: Directory of the prepared digits.
        runs: Directory of the runs to compare.
        keys: Keys of the level and both trainings.
        precision: Precision of the launch.

    Returns:
        The curves of rank 0, and a sorted line for each rank and fault.
    """
    script = str(Path(__file__).with_name("comparing.py"))
    done = torchrun(processes, Path.cwd(), script, str(data), str(runs), *keys, precision)
    assert done.returncode == 0, done.stderr
    printed = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert sorted(one[0] is None for one in printed) == [False] + [True] * (processes - 1)
    together = [BarrierCurve.from_dict(one) for one in next(one for one in printed if one[0] is not None)]
    return together, sorted(line for line in done.stdout.splitlines() if line[:1].isdigit())


@pytest.mark.long
@pytest.mark.parametrize("processes", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_several_processes_find_the_errors_of_one(
    experiment: Experiment, trained: tuple[Path, KEYS], alone: list[BarrierCurve], processes: int
) -> None:
    """Compare with one process, and inject faults.

    Errors may differ by one image. All ranks must end if one fails or must stop.
    """
    runs, keys = trained
    own_runs = shutil.copytree(runs, runs.with_name(f"of_{processes}"))
    together, endings = launch(processes, experiment.config.data.directory, own_runs, keys, "no")
    assert len(together) == len(alone) == 5
    for ours, one in zip(together, alone, strict=True):
        assert ours.error_percent == pytest.approx(one.error_percent, abs=IMAGE + 1e-9)
        assert (ours.test_images, ours.bn_images) == (500, one.bn_images)
        assert ours.recorded_error_a_percent == pytest.approx(one.recorded_error_a_percent, abs=IMAGE + 1e-9)
    records = [json.loads(path.read_text()) for path in own_runs.glob("analysis-*/record.json")]
    assert [record["config"]["launch"]["world_size"] for record in records] == [processes] * 5
    last = processes - 1
    expected = [f"{last} fails: OSError: the disk is gone", f"{last} stops: StoppedError: got SIGTERM"]
    for rank in range(last):
        expected += [f"{rank} fails: OtherRankFailedError: process {last} of {processes} failed; see its message"]
        expected += [f"{rank} stops: StoppedError: another process was asked to stop"]
    assert endings == sorted(expected)


@pytest.mark.long
def test_errors_in_bfloat16_match_full_precision(
    experiment: Experiment, trained: tuple[Path, KEYS], alone: list[BarrierCurve]
) -> None:
    """Check that bfloat16 gives the same errors, but for images on the border between two classes.

    Its comparison has another key, so that no result of full precision is reused.
    """
    runs, keys = trained
    own_runs = shutil.copytree(runs.with_name("alone"), runs.with_name("bf16"))
    before = set(own_runs.iterdir())
    with patch.object(world_module, "_has_accelerate", lambda: False):
        world = World("bf16")
    data = experiment.config.data.directory
    found = [one for one in asked(opened(world, data, own_runs, precision="bf16"), *keys) if one]
    assert {one.directory for one in found}.isdisjoint(before) and len(found) == 5
    for one, full in zip(found, alone, strict=True):
        check_same_in_bfloat16(one.curve, full)
        record = json.loads((one.directory / "record.json").read_text())
        determinants = json.loads((one.directory / "determinants.json").read_text())
        assert record["config"]["search"]["precision"] == determinants["precision"] == "bf16"
    for path in runs.with_name("alone").glob("analysis-*/determinants.json"):
        assert "precision" not in json.loads(path.read_text())
    together, _ = launch(2, data, shutil.copytree(runs, runs.with_name("bf16_of_2")), keys, "bf16")
    for ours, one in zip(together, found, strict=True):
        check_same_in_bfloat16(ours, one.curve)
