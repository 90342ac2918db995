"""Test a study's page: verdicts, departures and reused runs."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.analysis.barrier import BarrierCurve
from harness.reproduction.figure import Curve
from harness.reproduction.figure_plan import Training
from harness.reproduction.study import Study, read_study
from harness.reproduction.study_page import page, write_page
from harness.reproduction.study_records import (
    ChainRecords,
    RunLine,
    directory_of,
    finished_chains,
    tags_of,
    wanted_names,
)
from harness.reproduction.study_results import StudyResults, amended_records, barrier_points, plan_commit
from harness.reproduction.study_settings import PlannedSettings
from recipes.presets.figure_options import RESULTS
from recipes.presets.figures import SCALES
from recipes.reproduce import (
    STUDIES,
    ChangedSettings,
    ReproductionOptions,
    check_options,
    make_study,
    write_study_page,
)

pytestmark = pytest.mark.long  # pages take seconds

IMAGES = 500
DATA = "d" * 64
ALPHAS = tuple(i / 10 for i in range(11))


def study_named(name: str) -> Study:
    return read_study(STUDIES / f"{name}.toml", SCALES)


def key_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def made_up(
    name: str, error: int, *, above: float = 0.0, tags: dict[str, str], epochs: float, parents: tuple[str, ...] = ()
) -> RunLine:
    """Return the record of a run with synthetic results.

    Args:
        name: Name of the run in the plan.
        error: Number of wrong images among 500, for a training.
        above: Height of the curve above its ends in points, for a comparison.
        tags: Tags of the run.
        epochs: Total number of epochs, for a training.
        parents: Names of the compared runs.
    """
    # Phase: per-image results, or the curve of a comparison
    seed = zlib.crc32(name.encode())
    wrong = np.zeros(IMAGES, dtype=bool)
    wrong[np.random.default_rng(seed).choice(IMAGES, error, replace=False)] = True
    curve = None
    if name.startswith(("stability", "lmc", "norm_init")):
        errors = tuple(1.0 + above * (1 - abs(2 * alpha - 1)) for alpha in ALPHAS)
        if name.startswith("norm_init"):
            errors = tuple(1.0 + above * (1 - alpha) for alpha in ALPHAS)
        curve = BarrierCurve(ALPHAS, errors, errors[-1], errors[0], "cumulative", 1000, IMAGES)
    # Phase: the record
    return RunLine(
        name=name,
        key=key_of(name),
        run=name,
        parents=tuple((key_of(one), "compared") for one in parents),
        tags=tags,
        files={},
        metrics={} if curve else {"test_error_percent": 100 * error / IMAGES, "epochs_total": epochs},
        commit="0" * 40,
        started_ms=2_000_000_000_000,
        finished_ms=2_000_000_060_000,
        curve=curve,
        correct="" if curve else base64.b64encode(np.packbits(~wrong).tobytes()).decode(),
        num_images=0 if curve else IMAGES,
    )


def error_of(name: str, dense: dict[int, int]) -> int:
    """Return a training's number of wrong images among 500.

    A mask alone has 11 more than AWS's signed mask. LRR's signed mask has 12 more than AWS's, except after 100 epochs.
    """
    if name.startswith("dense"):
        epochs = int(name.split("-e")[1].split("-")[0]) if "-e" in name else 20
        return dense[epochs]
    worse = {"mask": 20, "signed_mask": 9, "retrain": 8, "signed_mask_norm": 8, "level": 50}
    kind = name.split("-L11-")[1].split("-")[0]
    late = "-e100" in name
    return worse[kind] + (12 if name.startswith("lrr") and kind == "signed_mask" and not late else 0)


def tags_of_run(study: Study, planned: PlannedSettings, training: Training) -> dict[str, str]:
    """Return the tags of a training that the plan asks for."""
    is_level = training.kind == "level"
    settings = min(planned.tags(training, DATA, is_level=is_level))
    return tags_of(study.plan, training, is_level=is_level) | {"data_digest": DATA, "settings": settings}


def records(study: Study, results: Path, trials: int = 10, dense: dict[int, int] | None = None) -> None:
    """Write synthetic records of a study's first `trials` trials.

    Args:
        dense: Wrong images of the dense network, by number of epochs.
    """
    dense, planned = dense or {20: 200, 100: 12, 176: 10}, PlannedSettings(study.plan)
    for chain, trainings in study.plan.chains().items():
        trial = trainings[0].trial
        if trial not in list(study.plan.trials)[:trials]:
            continue
        # Phase: one record per run of the chain
        lines = []
        tags = {str(one): tags_of_run(study, planned, one) for one in trainings}
        spent = {str(one): float(one.epochs or study.final_epochs[0]) for one in trainings}
        ends = {str(pair): (str(pair.first), str(pair.second)) for pair in study.plan.pairs()}
        for name in wanted_names(study.plan, chain):
            lrr_signs = "lrr-L11-signed_mask-" in name or "norm_init-lrr" in name
            plain = name.split("-", 1)[1] if name.startswith(("stability", "lmc", "norm_init")) else name
            lines.append(
                made_up(
                    name,
                    error_of(plain, dense) + trial % 3,
                    above=30.0 + trial if lrr_signs else 1.0,
                    tags=tags.get(name, {}),
                    epochs=spent.get(name, 0),
                    parents=ends.get(name, ()),
                )
            )
        # Phase: save the chain's file
        head = (study.name, study.sha256, chain, study.plan.subject, {}, "a machine", ("no problem found",))
        ChainRecords(*head, tuple(lines)).save(directory_of(study.name, results) / f"{chain}.json")


def read(study: Study, results: Path) -> StudyResults:
    """Read the results, with a plan that was committed before the runs."""
    found = StudyResults.read(study, results, {name: study_named(name) for name in study.beside})
    return replace(found, commit="c" * 40, committed_ms=1_900_000_000_000)


def test_a_complete_study_is_judged_by_its_plan(tmp_path):
    # Phase: verdicts of all hypotheses
    study = study_named("depth")
    records(study, tmp_path)
    results = read(study, tmp_path)
    assert results.is_complete and results.departures == []
    verdicts = {(one.hypothesis.name, one.epochs): one.verdict for one in results.judged}
    assert len(verdicts) == 17 and all(one is not None and one.tested == 17 for one in verdicts.values())
    words = {place: one.word for place, one in verdicts.items() if one is not None}
    assert words["a", 20] == words["a", 100] == "equal within 1"
    assert words["b", 20] == words["b", 100] == "shown"
    assert words["c", 20] == "shown" and words["c", 100] == "not shown"  # a difference in speed only
    # 0.2 points in every trial, but too few images differ to generalise to other images
    assert words["b'", 20] == "not shown" and verdicts["b'", 20].p < 0.01  # type: ignore[union-attr]
    assert words["e", 20] == words["f, stability", 100] == "shown"
    # Phase: files and text of the page
    files = {path.name for path in write_page(results, tmp_path / "page")}
    assert files == {"study.png", "study.svg", "accuracy.csv", "hypotheses.csv", "results.json", "page.md"}
    text = (tmp_path / "page" / "page.md").read_text()
    assert text.startswith(f"# {study.title}") and study.sha256 in text and "c" * 40 in text
    assert "learning rate 0.1, weight decay 0.0005, batch 64; warm-up 10 epochs, 6 epochs per level" in text
    assert "barrier, SGD-noise stability: signed_mask (lrr) > signed_mask (aws) (f, stability, 100 epochs)" in text
    assert "**Departures from the plan:** none." in text and "17 claims were tested" in text
    assert "| 20 | 59.78 ± 0.18 |" in text and "no: speed only" in text
    # the sides are called first and second, because hypotheses have names such as a and b
    assert "| 20 | speed | first > second | " in text and "| dense (176 epochs) | 100 |" in text
    # the summary separates differences in speed from those at the end of training
    end, speed = text.split("**After full training**")[1].split("**Speed only**")
    better = "signed_mask (aws) > signed_mask (lrr)"
    assert f"{better} (c, 20 epochs)" in speed.split("- shown:")[1].split("\n")[0]
    assert f"{better} (c, 100 epochs)" in end and f"{better} (c, 100 epochs)" not in end.split("- shown:")[1]
    # ε is shown only for lengths at which the dense network is fully trained
    rows = [line for line in text.splitlines() if line.startswith("| barrier, SGD-noise stability | retrain (aws)")]
    assert [line.split("|")[-2].strip() for line in rows] == ["", "0 (0.18)"]


def test_the_page_is_written_from_the_records_alone(tmp_path, capsys):
    records(study_named("depth"), tmp_path)
    write_study_page(study_named("depth"), tmp_path)
    assert {path.name for path in (tmp_path / "studies" / "depth").iterdir()} >= {"page.md", "study.png", "runs"}
    assert "speed only" in capsys.readouterr().out


def test_an_incomplete_study_is_not_judged(tmp_path):
    study = study_named("depth")
    records(study, tmp_path, trials=9)
    results = read(study, tmp_path)
    assert [one.verdict for one in results.judged] == [None] * 17
    text = page(results, "x.png")
    assert (
        "9 of 10 trials are finished. The numbers are provisional. No hypothesis is judged." in text
        and "shown" not in text
    )
    assert "Intervals over so few trials are too narrow." in text
    with pytest.raises(ValueError, match="no trial of the study end is finished"):
        write_page(read(study_named("end"), tmp_path), tmp_path / "page")


def read_some(study: Study, results: Path, dense: dict[int, int]) -> StudyResults:
    """Read the results of one trial alone."""
    records(study, results / "some", trials=1, dense=dense)
    return read(study, results / "some")


def test_nothing_is_claimed_against_an_untrained_dense_network(tmp_path):
    study = study_named("depth")
    records(study, tmp_path, dense={20: 200, 100: 60, 176: 10})
    results = read(study, tmp_path)
    assert results.is_untrained(100) and not results.is_untrained(176)
    of_dense = [one for one in results.judged if one.hypothesis.name == "dense"]
    assert len(of_dense) == 2 and all(one.verdict is None and "untrained" in one.why_not for one in of_dense)
    others = [one.verdict for one in results.judged if one.hypothesis.name != "dense"]
    assert all(one is not None and one.tested == 15 for one in others), "a row that is not judged counts as no claim"
    text = page(results, "x.png")
    assert "15 claims were tested" in text
    unfinished = page(read_some(study, tmp_path, {20: 200, 100: 60, 176: 10}), "x.png").split("\n\n")
    assert "not trained to the end" in unfinished[1] and "1 of 10 trials are finished" in unfinished[2]
    assert text.split("\n\n")[1].startswith("**The dense network is not trained to the end after 100 epochs")
    assert "**After full training**" not in text and "| end |" not in text
    rows = [line for line in text.splitlines() if line.startswith("| barrier, SGD-noise stability")]
    assert {line.split("|")[-2].strip() for line in rows} == {""}
    assert "The paper's ε is" not in text


def test_a_study_reuses_the_runs_of_a_related_study(tmp_path):
    depth, alpha = study_named("depth"), study_named("alpha")
    records(depth, tmp_path)
    results = read(alpha, tmp_path)
    assert results.trials == []  # only the other study has runs
    records(alpha, tmp_path)
    results = read(alpha, tmp_path)
    assert results.is_complete and len(results.judged) == 12
    assert {one.verdict.word for one in results.judged if one.hypothesis.name == "interpolation" and one.verdict} == {
        "equal within 1"
    }


def test_the_page_says_which_pairs_were_made_on_two_machines(tmp_path):
    depth, alpha = study_named("depth"), study_named("alpha")
    records(depth, tmp_path)
    records(alpha, tmp_path)
    assert read(alpha, tmp_path).across_machines == []
    assert "machines that are recorded differently" not in page(read(alpha, tmp_path), "")
    assert "on machines" not in page(read(depth, tmp_path), "")
    for path in directory_of("alpha", tmp_path).glob("aws-alpha_zero-*.json"):  # one method, on another CPU
        replace(ChainRecords.load(path), hardware="a machine, AVX2").save(path)
    told = page(read(alpha, tmp_path), "")
    assert "Hardware: a machine; a machine, AVX2. The two sides of these hypotheses" in told
    assert "differently: interpolation; α=0 against LRR; tickets, α=0. They share seeds" in told
    assert read(depth, tmp_path).across_machines == []
    # A chain that was resumed on another machine: its runs tell which.
    path = directory_of("depth", tmp_path) / "aws-s12.json"
    chain = ChainRecords.load(path)
    runs = [replace(run, hardware="b" if "L11-mask-" in run.name else "a machine") for run in chain.runs]
    replace(chain, hardware="a machine; b", runs=tuple(runs)).save(path)
    assert read(depth, tmp_path).across_machines == ["b"]
    assert "Hardware: a machine; b. The two sides" in page(read(depth, tmp_path), "")


def test_departures_from_the_plan_are_listed(tmp_path):
    depth = study_named("depth")
    records(depth, tmp_path)
    path = directory_of("depth", tmp_path) / "aws-s12.json"
    chain = ChainRecords.load(path)
    unclean = [replace(run, commit=run.commit + "+") for run in chain.runs]
    replace(chain, plan_sha256="f" * 64, runs=tuple(unclean)).save(path)
    results = replace(read(depth, tmp_path), committed_ms=2_100_000_000_000)
    text = " ".join(results.departures)
    assert "another version of the plan: aws-s12." in text
    assert "Started before this version of the plan was committed: aws-s11" in text
    assert "uncommitted changes of the code: " in text
    change(depth, tmp_path, "dense-t12", "dense-t12", commit="")
    assert (
        "Run with unknown code, because it was not in a git clone: dense-t12, 1 in all."
        in read(depth, tmp_path).departures
    )
    assert "commit date of the plan is unknown" in " ".join(replace(results, commit="").departures)


def change(study: Study, results: Path, chain: str, of: str, **values: object) -> None:
    """Change the recorded runs of a chain whose names contain `of`."""
    path = directory_of(study.name, results) / f"{chain}.json"
    kept = ChainRecords.load(path)
    runs = tuple(replace(run, **values) if of in run.name else run for run in kept.runs)  # type: ignore[arg-type]
    replace(kept, runs=runs).save(path)


def test_departures_of_reused_runs_are_listed_under_their_own_study(tmp_path):
    depth, alpha = study_named("depth"), study_named("alpha")
    records(depth, tmp_path)
    assert set(read(alpha, tmp_path).finished) == {f"dense-t{trial}" for trial in range(11, 21)}  # reused
    records(alpha, tmp_path)  # now both studies have the dense trainings
    assert read(alpha, tmp_path).departures == []
    change(depth, tmp_path, "lrr-s13", "retrain", commit="0" * 40 + "+")
    assert [one.split(":")[0] for one in read(alpha, tmp_path).departures] == ["depth"]
    change(alpha, tmp_path, "dense-t11", "dense-t11", key="f" * 64)
    with pytest.raises(ValueError, match="dense-t11 is recorded as two different runs"):
        read(alpha, tmp_path)


def test_runs_of_other_data_are_not_compared(tmp_path):
    depth = study_named("depth")
    records(depth, tmp_path, trials=1)
    tags = next(iter(finished_chains(depth, tmp_path)["dense-t11"].runs)).tags
    change(depth, tmp_path, "dense-t11", "dense-t11", tags={**tags, "data_digest": "f" * 64})
    with pytest.raises(ValueError, match="have different data"):
        read(depth, tmp_path)
    # The digest counts without images too.
    change(depth, tmp_path, "dense-t11", "dense-t11", correct="", num_images=0)
    with pytest.raises(ValueError, match="have different data"):
        read(depth, tmp_path)


def test_runs_without_per_image_results_are_compared_by_trials(tmp_path):
    depth = study_named("depth")
    records(depth, tmp_path)
    change(depth, tmp_path, "aws-s12", "aws-L11-mask-e100", correct="", num_images=0)
    results = read(depth, tmp_path)
    by_images = {(one.hypothesis.name, one.epochs): one.contrast.images is not None for one in results.judged}
    assert by_images["b", 20] and not by_images["b", 100]
    text = page(results, "x.png")
    assert "some runs lack results for single test images: b at 100 epochs, e." in text
    assert "No results for single test images: aws-L11-mask-e100-t12, 1 in all." in text


def test_other_settings_within_a_study_are_a_departure(tmp_path):
    depth = study_named("depth")
    records(depth, tmp_path)
    kept = finished_chains(depth, tmp_path)["aws-s12"]
    tags = next(run.tags for run in kept.runs if run.name == "aws-L11-mask-t12")
    change(depth, tmp_path, "aws-s12", "aws-L11-mask-t12", tags={**tags, "settings": "bf16"})
    told = " ".join(read(depth, tmp_path).departures)
    assert "Settings differ from those of the plan: aws-L11-mask-t12, 1 in all." in told


@pytest.mark.parametrize("trials", [1, 10])
def test_runs_of_other_settings_than_the_plans_are_a_departure(tmp_path, trials):
    """Change what the name of a scale stands for: all recorded runs agree with each other, but not with the plan."""
    depth = study_named("depth")
    records(depth, tmp_path, trials=trials)
    assert read(depth, tmp_path).departures == []
    scale = depth.plan.scale
    faster = replace(scale, config=replace(scale.config, optim=replace(scale.config.optim, lr=0.5)))
    other = replace(depth, plan=replace(depth.plan, scale=faster))
    told = read(other, tmp_path).departures
    assert len(told) == 1 and told[0].startswith("Settings differ from those of the plan: aws-L11-level-t11, ")


def test_another_alpha_than_the_plans_is_a_departure(tmp_path):
    depth, alpha = study_named("depth"), study_named("alpha")
    records(depth, tmp_path)
    records(alpha, tmp_path)
    (uniform,) = {
        run.tags["settings"]
        for run in finished_chains(depth, tmp_path)["aws-s11"].runs
        if run.name == "aws-L11-retrain-t11"
    }
    for trial in alpha.plan.trials:
        kept = finished_chains(alpha, tmp_path)[f"aws-alpha_zero-s{trial}"]
        for run in kept.runs:
            change(alpha, tmp_path, f"aws-alpha_zero-s{trial}", run.name, tags={**run.tags, "settings": uniform})
    assert any(one.startswith("Settings differ from those of the plan") for one in read(alpha, tmp_path).departures)


@pytest.mark.parametrize("name", ["depth", "alpha", "end"])
def test_the_recorded_runs_have_the_settings_of_their_plans(name):
    """Derive the settings of the repository's own records from their plans."""
    study = study_named(name)
    results = read(study, RESULTS)
    assert results.chains and not any("Settings" in one or "settings" in one for one in results.departures)


def test_records_that_were_changed_later_are_a_departure(tmp_path):
    def git(*words: str) -> None:
        who = ("-c", "user.name=x", "-c", "user.email=x@x")
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    depth = study_named("depth")
    records(depth, tmp_path)
    assert amended_records(directory_of("depth", tmp_path)) == ()  # outside a repository
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "Record")
    assert read(depth, tmp_path).departures == []
    change(depth, tmp_path, "aws-s12", "aws", hardware="another machine")
    (told,) = read(depth, tmp_path).departures
    assert told == "Records that were changed after they were made: aws-s12, 1 in all (not committed)."
    git("commit", "-qam", "Name the machine")
    (told,) = read(depth, tmp_path).departures
    assert told.startswith("Records that were changed after they were made: aws-s12, 1 in all (commit ")
    assert "“Name the machine”" in told


def test_a_dense_side_must_be_trained_to_the_end_itself(tmp_path):
    depth = study_named("depth")
    records(depth, tmp_path, dense={20: 12, 100: 60, 176: 12})
    results = read(depth, tmp_path)
    one = replace(next(one for one in depth.hypotheses if one.name == "dense"), first=Curve("lrr", "retrain"))
    assert results.is_untrained(100) and not results.is_untrained(20) and not results.is_untrained(176)
    assert not results.is_of_speed(replace(one, dense_epochs=176), 20)
    assert results.is_of_speed(replace(one, dense_epochs=100), 20)


@pytest.mark.parametrize(
    ("dense", "untrained"),
    [
        ({20: 20, 100: 18, 176: 10}, [20, 100]),  # the gain of the first step alone is small
        ({20: 15, 100: 13, 176: 11}, []),
        ({20: 200, 100: 12, 176: 14}, [20]),
    ],
)
def test_dense_is_untrained_if_any_longer_training_gains_a_point(tmp_path, dense, untrained):
    depth = study_named("depth")
    records(depth, tmp_path, trials=2, dense=dense)
    results = read(depth, tmp_path)
    assert [epochs for epochs in results.dense_epochs if results.is_untrained(epochs)] == untrained


def test_records_outside_the_plan_are_a_departure(tmp_path):
    depth = study_named("depth")
    records(depth, tmp_path)
    assert read(depth, tmp_path).departures == []
    directory = directory_of("depth", tmp_path)
    (directory / "aws-s21.json").write_text((directory / "aws-s12.json").read_text())
    assert read(depth, tmp_path).departures == ["Recorded, but not in the plan, and left out: aws-s21."]


def test_a_copys_error_increase_rests_on_trials_and_images(tmp_path):
    """Compare images of which the copies of LRR get ten wrong, and those of AWS none more than the ticket."""
    depth = study_named("depth")
    records(depth, tmp_path)
    ticket, copy = np.arange(IMAGES) >= 5, np.arange(IMAGES) >= 15
    for method, ends in (("lrr", (copy, ticket)), ("aws", (ticket, ticket))):
        errors = tuple(100 * float(np.mean(~one)) for one in ends)
        curve = BarrierCurve((0.0, 1.0), errors, errors[1], errors[0], "cumulative", 1000, IMAGES)
        stored = base64.b64encode(np.packbits(np.stack(ends), axis=-1).tobytes()).decode()
        for trial in depth.plan.trials:
            values = {"curve": curve, "correct": stored, "num_images": IMAGES, "metrics": {"barrier": curve.barrier}}
            change(depth, tmp_path, f"{method}-s{trial}", "norm_init", **values)
    one = next(one for one in read(depth, tmp_path).judged if one.hypothesis.of == "norm_init")
    assert one.contrast.images is not None and one.contrast.images.shape == (10, IMAGES)
    assert one.contrast.mean == pytest.approx(100 * 10 / IMAGES)
    assert one.contrast.interval is not None and one.contrast.interval[0] < one.contrast.mean < one.contrast.interval[1]


def test_a_length_after_which_accuracy_still_rises_is_about_speed(tmp_path):
    """Test masks that still improve after the dense network has stopped."""
    depth = study_named("depth")
    records(depth, tmp_path, dense={20: 12, 100: 12, 176: 12})
    results = read(depth, tmp_path)
    hypotheses = {one.name: one for one in depth.hypotheses}
    assert not results.is_untrained(20)
    assert results.is_of_speed(hypotheses["c"], 20) and not results.is_of_speed(hypotheses["c"], 100)
    assert not results.is_of_speed(hypotheses["b"], 20)


def test_a_gain_of_one_point_up_to_rounding_counts_as_one(tmp_path):
    depth = study_named("depth")
    # 5 of 500 images are one point; these means differ by 1.0000000000000142
    records(depth, tmp_path, trials=3, dense={20: 181, 100: 176, 176: 176})
    results = read(depth, tmp_path)
    gain = results.dense_gain(20)
    assert gain is not None and gain > 1 and not results.is_untrained(20)


def test_a_copy_is_judged_by_the_difference_of_errors(tmp_path):
    """Judge a ticket's copy by the difference of errors.

    The paper's barrier is only half of it: 0.8 for 1.6 points.
    """
    depth = study_named("depth")
    records(depth, tmp_path, trials=2)
    for trial in (11, 12):
        curve = BarrierCurve((0.0, 1.0), (6.6, 5.0), 5.0, 6.6, "cumulative", 1000, IMAGES)
        change(depth, tmp_path, f"aws-s{trial}", "norm_init", curve=curve)
    assert "| level (aws) | 1.60 ± 0.00 | 0 of 2 |" in page(read(depth, tmp_path), "x.png")


def test_a_copy_that_is_better_than_its_ticket_counts_below_zero():
    curve = BarrierCurve((0.0, 1.0), (2.0, 5.0), 5.0, 2.0, "cumulative", 1000, IMAGES)
    run = replace(made_up("dense-t1", 5, tags={}, epochs=1), curve=curve)
    assert barrier_points(run, "norm_init") == -3.0


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"trials": 3}, "--trials: the plan .* sets this"),
        ({"changes": ChangedSettings(final_epochs=5)}, "--final-epochs: the plan"),
        ({"only": ("dense-t11",), "precision": "bf16"}, "--only, --precision: "),
        ({"figure": "fig3"}, "give a FIGURE"),
        ({"again": "aws-s11", "shard": "1/2"}, "remove --shard"),
        ({"study": None, "figure": "fig3", "again": "aws-s11"}, "--again needs --study NAME"),
    ],
)
def test_options_that_a_study_ignores_are_refused(changed, told):
    allowed = ReproductionOptions(study="depth", shard="1/2", runs=Path("mine"), offline=True, num_workers=1)
    check_options(allowed)
    with pytest.raises(ValueError, match=told):
        check_options(replace(allowed, **{"shard": None, **changed}))


def test_one_process_of_a_launch_writes_the_page(tmp_path, monkeypatch, capsys):
    depth = study_named("depth")
    records(depth, tmp_path)
    options = ReproductionOptions(study="depth", results=tmp_path)
    monkeypatch.setenv("RANK", "1")
    make_study(options, depth)
    assert not (tmp_path / "studies" / "depth" / "page.md").exists() and capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.chdir(tmp_path)  # works in any directory
    make_study(options, depth)
    assert (tmp_path / "studies" / "depth" / "page.md").exists()


def test_the_commit_of_a_plan_is_that_of_its_last_change(tmp_path):
    def git(*words: str) -> str:
        who = ("-c", "user.name=x", "-c", "user.email=x@x")
        return subprocess.run(
            ["git", "-C", str(tmp_path), *who, *words], capture_output=True, text=True, check=True
        ).stdout

    (plan := tmp_path / "whole" / "plan.toml").parent.mkdir()
    assert plan_commit(plan) == ("", 0)
    git("init", "whole")
    for path, text in ((plan, "a = 1"), (plan.with_name("other"), "x")):
        path.write_text(text)
        assert plan_commit(path) == ("", 0)
        git("-C", "whole", "add", ".")
        git("-C", "whole", "commit", "-m", "x", "--date", "2020-01-01")
    hashes = git("-C", "whole", "log", "--format=%H").split()
    commit, when = plan_commit(plan)
    assert commit == hashes[1] and when > 1_577_836_800_000  # the committer date, not the author date
    git(
        "clone", "--depth", "1", (tmp_path / "whole").as_uri(), "shallow"
    )  # in a shallow clone the only commit seems to change every file
    assert plan_commit(tmp_path / "shallow" / "plan.toml") == ("", 0)
    plan.write_text("a = 2")
    assert plan_commit(plan) == ("", 0)
