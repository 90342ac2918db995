"""Test `--evaluate-every`: the test error within a training, which changes no bit of the training."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.distributed.stop import StoppedError
from harness.distributed.world import StopRequest
from harness.experiment import trainer
from harness.experiment.experiment import Experiment
from harness.experiment.final import Trial, final_training
from harness.experiment.search import search
from harness.lineage.browse.difference import differences
from harness.lineage.nodes.record import ERROR_BY_EPOCH
from harness.lineage.store import open_store
from harness.runs.run import FinishedRun
from harness.training.evaluate import evaluate
from tests.pruning.searching import STEPS, proved

FILES = ("checkpoint.safetensors", "signed_mask.safetensors", "correct.safetensors", "scores.safetensors")


@pytest.fixture
def fresh(experiment: Experiment, tmp_path: Path) -> Callable[..., Experiment]:
    """Return a function that returns the experiment with a store of its own and these settings."""

    def made(name: str, method: str, **changes: object) -> Experiment:
        config = replace(experiment.config, runs=tmp_path / name, method=method, num_levels=1, level_epochs=2)
        config = replace(config, **changes)
        return Experiment(experiment.world, open_store(config.runs, offline=True), config)

    return made


def results(run: FinishedRun) -> tuple[object, ...]:
    """Return the key, digests and metrics of a run, without speeds and errors by epoch."""
    assert run.record is not None
    skipped = ("images_per_second", "system/", ERROR_BY_EPOCH)
    metrics = [(one.name, one.value, one.step) for one in run.record.metrics if not one.name.startswith(skipped)]
    return run.key, run.record.tags["settings"], {f: run.record.files.get(f) for f in FILES}, metrics


def by_epoch(run: FinishedRun) -> list[tuple[int, float]]:
    """Return the epoch and value of each error measured within the training."""
    assert run.record is not None
    return [(one.step, one.value) for one in run.record.metrics if one.name == ERROR_BY_EPOCH]


def states() -> list[object]:
    """Return the states of all global generators."""
    return [torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()]


def test_a_search_and_its_final_training_have_the_same_bits(fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    # Phase: search and train without the option, then with it and with a look at the generators
    plain, watched = fresh("plain", "aws"), fresh("watched", "aws", evaluate_every=1)
    measure, seen = trainer.error_so_far, []

    def spied(*args: object, **options: object) -> float:
        before = states()
        found = measure(*args, **options)
        seen.append(before == states())
        return found

    monkeypatch.setattr(trainer, "error_so_far", spied)
    found = {}
    for each in (plain, watched):
        levels = search(each).levels
        found[each] = [*levels, final_training(each, Trial("signed_mask", 2, 1), levels[-1])]

    # Phase: level 1 starts after the warm-up epoch; the last epoch of a training is not measured
    assert [results(run) for run in found[watched]] == [results(run) for run in found[plain]]
    assert [[epoch for epoch, _ in by_epoch(run)] for run in found[watched]] == [[], [2], [1]]
    assert seen == [True, True] and not any(by_epoch(run) for run in found[plain])

    # Phase: neither verify nor diff calls it a difference of the results
    assert proved(watched, found[watched][1]).problems == []
    for one, other in zip(found[plain], found[watched], strict=True):
        assert differences(one.record, other.record).keys() == {"launch"}


def stopping(after: int) -> property:
    """Return a `StopRequest.reason` that asks to stop at the n-th look. There is one look after each step."""
    looks = count(1)
    return property(lambda self: "asked" if next(looks) >= after else None)


def test_a_resumed_training_keeps_earlier_errors(fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    saving = {"checkpoint_every": 1, "checkpoint_unit": "steps", "warmup_epochs": 4, "num_levels": 0}
    whole = search(fresh("whole", "lrr", evaluate_every=1, **saving)).ticket
    interrupted = fresh("interrupted", "lrr", evaluate_every=1, **saving)
    for steps in (STEPS, 2):  # at the end of an epoch, before its error is measured, and within the next epoch
        with monkeypatch.context() as patch, pytest.raises(StoppedError):
            patch.setattr(StopRequest, "reason", stopping(steps))
            search(interrupted)
    resumed = search(interrupted).ticket
    assert results(resumed) == results(whole)
    assert by_epoch(resumed) == by_epoch(whole) and [epoch for epoch, _ in by_epoch(whole)] == [1, 2, 3]


def test_score_training_is_evaluated_with_its_effective_weights(fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    gem = fresh("gem", "gem_miner").config.gem_miner
    gem = replace(gem, score_epochs=3, freeze_every_epochs=1)
    gem = replace(gem, finetune=replace(gem.finetune, epochs=2, lr_milestones_epochs=None))
    plain = search(fresh("plain", "gem_miner", gem_miner=gem))
    values: list[set[float]] = []

    def spied(model: torch.nn.Module, *args: object, **options: object) -> float:
        values.append(set(model.get_parameter("conv1.weight").abs().unique().tolist()))
        return evaluate(model, *args, **options).error_percent

    monkeypatch.setattr(trainer, "error_so_far", spied)
    found = search(fresh("watched", "gem_miner", gem_miner=gem, evaluate_every=1))
    assert results(found.ticket) == results(plain.ticket) and [epoch for epoch, _ in by_epoch(found.ticket)] == [4]
    assert [len(each) for each in values[:2]] == [2, 2]  # 0 and the constant magnitude of w₀, while scores are many


def test_every_third_epoch(fresh) -> None:
    found = search(fresh("third", "lrr", evaluate_every=3, warmup_epochs=7, num_levels=0)).ticket
    assert [epoch for epoch, _ in by_epoch(found)] == [3, 6]
