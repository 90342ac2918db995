"""Test the self-check.

Harness and reference compute equal numbers. Each injected fault is found at the first stage that it affects.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from harness.analysis import plots
from harness.config import Schedule
from harness.distributed import world as world_module
from harness.distributed.stop import StoppedError
from harness.experiment.experiment import Experiment
from harness.masks import SignedMask, transfer
from harness.pruning import LevelContext, NormState, PruningSchedule, StartPoint
from harness.pruning.aws import AWS
from harness.training import batchnorm, feed, loop
from recipes.checks import selfcheck
from recipes.checks.selfcheck import Deviation
from recipes.checks.selfcheck_reference import Stage
from recipes.checks.settings import SelfCheck
from tests.recipes.launching import REPOSITORY, run

SMALL = SelfCheck("aws", epochs=1, width=2, batch_size=256)


@contextmanager
def opened(where: Path) -> Iterator[Experiment]:
    """Open a launch without plots and without Accelerate.

    Accelerate's state is global to the process and would affect other tests. The results have the same bits.
    """
    without = patch.object(world_module, "_has_accelerate", lambda: False), patch.object(plots, "plot_barriers")
    with without[0], without[1], selfcheck.opened(SMALL, where) as experiment:
        yield experiment


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Stage]]:
    """Return the reference's stages, by method and stage name."""
    with opened(tmp_path_factory.mktemp("reference")) as experiment:
        return {method: dict(selfcheck.by_reference(experiment, method)) for method in ("aws", "lrr")}


def compared(theirs: dict[str, Stage], where: Path, method: str = "aws") -> dict[str, Deviation]:
    """Run the harness and compare it with the reference.

    Args:
        theirs: Stages of the reference. The harness runs only as many.
        where: Directory for the runs.
        method: Pruning method.

    Returns:
        The deviation of each quantity.
    """
    with opened(where) as experiment:
        return selfcheck.compare(dict(islice(selfcheck.by_harness(experiment, method), len(theirs))), theirs)


@pytest.mark.long
@pytest.mark.parametrize("method", ["aws", "lrr"])
def test_harness_and_reference_are_equal(theirs, tmp_path: Path, method: str) -> None:
    found = compared(theirs[method], tmp_path, method)
    assert found.keys() == {"weights", "BatchNorm", "masks", "signs", "losses", "errors %"}
    for quantity, deviation in found.items():
        assert deviation.beyond == [] and deviation.largest < 1e-12, (quantity, deviation)
    assert torch.get_default_dtype() == torch.float32

    # the comparison is not empty: it has all stages, two prunings, and a difference between the methods
    stages = theirs[method]
    assert list(stages) == ["level 0", "level 1", "level 2", "barrier", "final"]
    kept = [sum(int(mask.sum()) for mask in stages[f"level {level}"]["masks"].values()) for level in range(3)]
    assert kept == [kept[0], int(0.8 * kept[0]), int(0.8 * int(0.8 * kept[0]))] and kept[0] > 1000
    other = selfcheck.compare(theirs["lrr"], theirs["aws"])
    assert other["weights"].beyond[0].startswith("level 0")


# Faults that a future version could have. Each function patches one into the harness.

Patch = pytest.MonkeyPatch


def another_alpha_backward(patched: Patch) -> None:
    """Scale the gradient of ψ by a wrong α."""
    usual = torch._foreach_mul_
    scaled = lambda tensors, by: usual(tensors, by * 0.5 if isinstance(by, torch.Tensor) else by)  # noqa: E731
    patched.setattr(torch, "_foreach_mul_", scaled)


def constants_as_psi_init(patched: Patch) -> None:
    def view(self: AWS, norm: NormState, usual: Any = AWS.view) -> Any:
        return usual(self, replace(norm, initial=[torch.full_like(psi, psi.mean().round()) for psi in norm.initial]))

    patched.setattr(AWS, "view", view)


def no_weight_decay_of_psi(patched: Patch) -> None:
    def build(params: Any, config: Any, *, fused: bool, usual: Any = loop.build_optimizer) -> torch.optim.Optimizer:
        params = list(params)
        groups = [{"params": [p for p in params if p.ndim > 1]}]
        groups += [{"params": [p for p in params if p.ndim == 1], "weight_decay": 0.0}]
        return usual(groups, config, fused=fused)

    patched.setattr(loop, "build_optimizer", build)


def images_in_float32(patched: Patch) -> None:
    usual = feed.normalize
    patched.setattr(feed, "normalize", lambda *given: usual(*given).float().double())


def one_weight_more_is_pruned(patched: Patch) -> None:
    usual = PruningSchedule.counts
    patched.setattr(PruningSchedule, "counts", lambda *given: {n: count - 1 for n, count in usual(*given).items()})


def pruned_weights_come_back(patched: Patch) -> None:
    patched.setattr(loop.Remask, "params_", lambda self: None)


def statistics_start_anew(patched: Patch) -> None:
    def start(self: AWS, ctx: LevelContext, usual: Any = AWS.start) -> StartPoint:
        return replace(usual(self, ctx), buffers=dict(ctx.theta_init.buffers))

    patched.setattr(AWS, "start", start)


def ema_for_a_cumulative_mean(patched: Patch) -> None:
    usual = batchnorm._fold_
    patched.setattr(batchnorm, "_fold_", lambda model, layers, batches, *_: usual(model, layers, batches, "ema"))


def no_signs_of_the_classifier(patched: Patch) -> None:
    usual = transfer.unpruned_names
    patched.setattr(transfer, "unpruned_names", lambda mask, which, classifier: usual(mask, "biases", classifier))


def signs_of_psi(patched: Patch) -> None:
    usual = SignedMask.signed
    patched.setattr(SignedMask, "signed", lambda *given, **how: usual(*given, **how | {"norm": True}))


def one_milestone_late(patched: Patch) -> None:
    usual = Schedule.lr_factor
    patched.setattr(Schedule, "lr_factor", lambda self, epoch: usual(self, max(0, epoch - 1)))


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "quantity", "first"),
    [
        (another_alpha_backward, "weights", "level 0"),
        (constants_as_psi_init, "losses", "level 0"),
        (no_weight_decay_of_psi, "weights", "level 0"),
        (images_in_float32, "BatchNorm", "level 0"),
        (one_weight_more_is_pruned, "masks", "level 1"),
        (pruned_weights_come_back, "weights", "level 1"),
        (statistics_start_anew, "BatchNorm", "level 1"),
        (ema_for_a_cumulative_mean, "losses", "level 0"),
        (no_signs_of_the_classifier, "weights", "final"),
        (signs_of_psi, "weights", "final"),
        (one_milestone_late, "weights", "final"),
    ],
)
def test_a_planted_fault_is_found_at_its_first_stage(
    theirs, tmp_path: Path, monkeypatch: Patch, capsys, fault: Callable[[Patch], None], quantity: str, first: str
) -> None:
    fault(monkeypatch)
    stages = list(theirs["aws"])[: list(theirs["aws"]).index(first) + 1]
    found = compared({name: theirs["aws"][name] for name in stages}, tmp_path)
    assert {place.split(", ")[0] for each in found.values() for place in each.beyond} == {first}
    assert found[quantity].beyond
    assert selfcheck.report(found) == 1
    said = capsys.readouterr().out
    assert f"DIFFERENT {quantity}: " in said and f"the first one in {found[quantity].beyond[0]}" in said


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([0.5], [0.25], 0.25),
        ([300.0], [200.0], 0.5),  # relative if values are above 1
        ([1.0, 2.0], [1.0], math.inf),
        ([math.nan], [1.0], math.inf),
        ([math.nan], [math.nan], math.inf),
        ([math.inf], [math.inf], math.inf),
    ],
)
def test_distance(one: list[float], other: list[float], distance: float) -> None:
    assert selfcheck.distance_of(torch.tensor(one), torch.tensor(other)) == distance


def test_a_missing_tensor_quantity_or_stage_is_found(capsys) -> None:
    whole: dict[str, Stage] = {"level 0": {"weights": {"a": torch.ones(2)}, "masks": {"a": torch.tensor([True])}}}
    assert selfcheck.report(selfcheck.compare(whole, whole)) == 0
    lacking: list[dict[str, Stage]] = [{"level 0": whole["level 0"] | {"weights": {}}}, {"level 0": {}}, {}]
    for part in lacking:
        for pair in ((part, whole), (whole, part)):
            found = selfcheck.compare(*pair)
            assert found["weights"].beyond == ["level 0, a"] and selfcheck.report(found) == 1


def test_one_wrong_sign_or_mask_entry_is_found() -> None:
    """Check that signs and masks must be exactly equal.

    Rounding cannot explain a difference.
    """
    one: dict[str, Stage] = {
        "final": {"signs": {"a": torch.tensor([1, 0])}, "masks": {"a": torch.tensor([True, False])}}
    }
    other: dict[str, Stage] = {
        "final": {"signs": {"a": torch.tensor([1.0, -1.0])}, "masks": {"a": torch.tensor([True, True])}}
    }
    found = selfcheck.compare(one, other)
    assert found["signs"].beyond == found["masks"].beyond == ["final, a"]


def test_several_processes_are_refused(monkeypatch: Patch, capsys) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert selfcheck.run(SMALL) == 2
    assert "no answer: the self-check needs one process" in capsys.readouterr().err


def test_a_missing_library_is_one_line_with_its_extra(monkeypatch: Patch, capsys) -> None:
    monkeypatch.setattr("harness.common.optional.is_installed", lambda library: library != "sklearn")
    assert selfcheck.run(SMALL) == 2
    said = (
        "no answer: the self-check needs scikit-learn, which is not installed; run: pip install 'signed-tickets[data]'"
    )
    assert capsys.readouterr() == ("", f"{said}\n")


@pytest.mark.parametrize(("raised", "code"), [(KeyboardInterrupt(), 130), (StoppedError("got SIGINT"), 75)], ids=repr)
def test_an_interrupted_check_ends_with_one_line(monkeypatch: Patch, capsys, raised: BaseException, code: int) -> None:
    def interrupted(*arguments: object) -> None:
        raise raised

    monkeypatch.setenv("WORLD_SIZE", "")  # as a scheduler leaves it
    monkeypatch.setattr(selfcheck, "check", interrupted)
    assert selfcheck.run(SMALL) == code
    assert capsys.readouterr().err == "stopped: got SIGINT\n"


def test_the_reference_does_not_import_the_harness() -> None:
    imported = re.findall(
        r"^(?:import|from) (\w+)", (REPOSITORY / "recipes/checks/selfcheck_reference.py").read_text(), re.M
    )
    assert set(imported) <= {"__future__", "collections", "dataclasses", "typing", "numpy", "torch"}


@pytest.mark.long
@pytest.mark.parametrize("start", [(str(REPOSITORY / "tools/selfcheck.py"),), ("-m", "signed_tickets", "selfcheck")])
def test_the_command(tmp_path: Path, start: tuple[str, ...]) -> None:
    said = run(
        tmp_path, sys.executable, *start, "--method", "aws", "--epochs", "1", "--width", "2", "--batch-size", "256"
    )
    assert "about 17 seconds on one core" in said
    for line in ("harness +level 2 +test error", "reference +barrier", "reference +final", "weights .* equal"):
        assert re.search(line, said), line
    assert said.endswith("\nequal: both compute the same numbers\n")
    assert list(tmp_path.iterdir()) == []
