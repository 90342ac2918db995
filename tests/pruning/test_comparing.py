"""Test which trainings may be compared, and the recorded settings."""

from __future__ import annotations

import shutil

import pytest

from harness.config import ComparisonConfig
from harness.experiment import comparison
from harness.experiment.comparison import Comparison, compare, compare_signed_init
from harness.experiment.experiment import Experiment
from harness.experiment.final import Trial, final_training
from harness.experiment.search import SearchResult, search
from harness.lineage.proof import Findings, verify
from harness.lineage.store import open_store
from harness.runs.run import FinishedRun
from tests.pruning.searching import STEPS

FEW = ComparisonConfig(num_alphas=3, bn_images=300)
BATCH = 256


@pytest.fixture(scope="module")
def found(experiment: Experiment) -> SearchResult:
    return search(experiment.using("lrr"))


def trained(
    experiment: Experiment, found: SearchResult, kind: str, init_seed: int, sgd_seed: int, level: int = 2
) -> FinishedRun:
    trial = Trial(kind, init_seed, sgd_seed)  # type: ignore[arg-type]
    return final_training(experiment.using("lrr"), trial, found.levels[level])


def asked(
    experiment: Experiment,
    first: FinishedRun,
    second: FinishedRun,
    question: str,
    config: ComparisonConfig = FEW,
    **options: bool,
) -> tuple[Comparison, dict[str, str]]:
    """Compare two trainings.

    Returns:
        The comparison, and the tags of its record.
    """
    result = compare(experiment, first, second, question, config, **options)  # type: ignore[arg-type]
    assert result is not None
    return result, experiment.store.local.load(result.key).tags


@pytest.mark.parametrize("kind", ["signed_mask", "retrain"])
def test_stability_compares_one_start_under_two_noises(experiment: Experiment, found: SearchResult, kind: str) -> None:
    one, twin = (trained(experiment, found, kind, 2, sgd_seed) for sgd_seed in (1, 2))
    _, tags = asked(experiment, one, twin, "stability")
    assert (tags["same_start"], tags["question"]) == ("true", "stability")
    same_noise = trained(experiment, found, "mask", 2, 1)
    with pytest.raises(ValueError, match="have the same sgd_seed"):
        compare(experiment, one, same_noise, "stability", FEW)
    with pytest.raises(ValueError, match="are the same run"):
        compare(experiment, one, one, "stability", FEW)


def test_different_starts_are_compared_only_with_cross_init(experiment: Experiment, found: SearchResult) -> None:
    one, other = trained(experiment, found, "signed_mask", 2, 1), trained(experiment, found, "signed_mask", 3, 2)
    with pytest.raises(ValueError, match="started from different parameters.*--cross-init"):
        compare(experiment, one, other, "stability", FEW)
    _, tags = asked(experiment, one, other, "stability", cross_init=True)
    assert tags["same_start"] == "false"


def test_connectivity_requires_equal_masks(experiment: Experiment, found: SearchResult) -> None:
    one, solution = trained(experiment, found, "signed_mask", 2, 1), trained(experiment, found, "retrain", 2, 1)
    _, tags = asked(experiment, one, solution, "lmc")
    assert tags["question"] == "lmc"
    denser = trained(experiment, found, "retrain", 2, 1, level=1)
    with pytest.raises(ValueError, match="have different masks"):
        compare(experiment, one, denser, "lmc", FEW)


def signed_init(experiment: Experiment, found: SearchResult, init_seed: int) -> Comparison:
    """Compare the ticket with its signs on the θ_init of a seed."""
    result = compare_signed_init(experiment.using("lrr"), found.ticket, init_seed, FEW)
    assert result is not None
    return result


def problems_of(experiment: Experiment, one: Comparison) -> tuple[Findings, set[tuple[str, str]]]:
    """Verify a comparison with its ancestors.

    Returns:
        The findings, and a pair for each problem (name of the check, first word of the run's name).
    """
    findings = verify(open_store(experiment.config.runs, offline=True), one.key)
    return findings, {(problem.check, problem.name.split()[0]) for problem in findings.problems}


def test_signed_init_compares_the_start_of_the_final_training(experiment: Experiment, found: SearchResult) -> None:
    one = signed_init(experiment, found, 2)
    record = experiment.store.local.load(one.key)
    training = trained(experiment, found, "signed_mask", 2, 1)
    assert training.record is not None
    assert record.tags["start_digest"] == training.record.tags["start_digest"]
    assert record.tags["init_seed"] == "2" and record.config["init_seed"] == 2
    assert "same_start" not in record.tags  # only comparisons of two trainings have this tag
    assert len(record.parents) == 1 and record.parents[0].key == found.ticket.key
    # another seed gives another comparison with the same ticket at α = 1
    assert signed_init(experiment, found, 2).key == one.key
    other = signed_init(experiment, found, 3)
    assert other.key != one.key and other.curve.error_a_percent == one.curve.error_a_percent
    findings, problems = problems_of(experiment, one)
    assert problems == set() and findings.notes == [] and {"start", "compared", "seeds"} <= findings.checked.keys()


def test_signed_init_requires_a_fresh_initialisation(experiment: Experiment, found: SearchResult) -> None:
    with pytest.raises(ValueError, match="init_seed 1 is the search's own"):
        signed_init(experiment, found, 1)
    training = trained(experiment, found, "mask", 2, 1)
    with pytest.raises(ValueError, match="is a training; this comparison needs a level"):
        compare_signed_init(experiment.using("lrr"), training, 2, FEW)


def test_a_copy_from_a_wrong_seed_is_found(
    experiment: Experiment, found: SearchResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that verification finds copies from a wrong seed.

    One copy is drawn with seed 9 and recorded as seed 8. The other uses the seed of the search itself.
    """
    draw = Experiment.theta_init
    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "theta_init", lambda self, seed: draw(self, seed + 1))
        wrong = signed_init(experiment, found, 8)
    assert problems_of(experiment, wrong)[1] == {("start", "signed_init")}
    with monkeypatch.context() as patch:
        patch.setattr(comparison, "_check_fresh", lambda *_: None)
        own = signed_init(experiment, found, 1)
    assert problems_of(experiment, own)[1] == {("seeds", "signed_init")}
    for planted in (wrong, own):  # other tests verify the shared store
        shutil.rmtree(planted.directory)


@pytest.mark.parametrize(
    ("convention", "asked_for", "images"),
    [
        ("cumulative", 300, 2 * BATCH),  # whole batches
        ("cumulative", 10_000, STEPS * BATCH),
        ("cumulative", "all", STEPS * BATCH),
        ("ema", "all", STEPS * BATCH),  # ema always uses one full training epoch
        ("none", 10_000, 0),
    ],
)
def test_the_batchnorm_convention_is_recorded(
    experiment: Experiment, found: SearchResult, convention: str, asked_for: int | str, images: int
) -> None:
    pair = (trained(experiment, found, "signed_mask", 2, sgd_seed) for sgd_seed in (1, 2))
    config = ComparisonConfig(num_alphas=2, bn_convention=convention, bn_images=asked_for)  # type: ignore[arg-type]
    result, tags = asked(experiment, *pair, "stability", config)
    assert (tags["bn_convention"], tags["num_alphas"]) == (convention, "2")
    assert (result.curve.convention, result.curve.bn_images) == (convention, images)
    assert result.curve.alphas == (0.0, 1.0)


def test_the_default_grid_is_the_papers() -> None:
    assert ComparisonConfig().alphas == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1])
    assert ComparisonConfig().bn_convention == "cumulative"
