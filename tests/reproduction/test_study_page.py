"""The page of a study: judged only when it is whole, against dense only where that is trained, by its plan alone."""

from __future__ import annotations

import base64
import hashlib
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.analysis.barrier import BarrierCurve
from harness.reproduction.study import Study, read_study
from harness.reproduction.study_page import page, write_page
from harness.reproduction.study_records import ChainRecords, RunLine, directory_of, wanted_names
from harness.reproduction.study_results import StudyResults
from recipes.presets.figures import SCALES
from recipes.reproduce import STUDIES, write_study_page

IMAGES = 500
ALPHAS = tuple(i / 10 for i in range(11))


def study_named(name: str) -> Study:
    return read_study(STUDIES / f"{name}.toml", SCALES)


def made_up(name: str, error: int, *, above: float = 0.0) -> RunLine:
    """A run with so many of 500 images wrong; of a comparison with a hump of so many points in the middle."""
    seed = zlib.crc32(name.encode())
    wrong = np.zeros(IMAGES, dtype=bool)
    wrong[np.random.default_rng(seed).choice(IMAGES, error, replace=False)] = True
    curve = None
    if name.startswith(("stability", "lmc", "norm_init")):
        errors = tuple(1.0 + above * (1 - abs(2 * alpha - 1)) for alpha in ALPHAS)
        if name.startswith("norm_init"):
            errors = tuple(1.0 + above * (1 - alpha) for alpha in ALPHAS)
        curve = BarrierCurve(ALPHAS, errors, errors[-1], errors[0], "cumulative", 1000, IMAGES)
    return RunLine(
        name=name,
        key=hashlib.sha256(name.encode()).hexdigest(),
        run=name,
        parents=(),
        tags={},
        files={},
        metrics={} if curve else {"test_error_percent": 100 * error / IMAGES},
        commit="0" * 40,
        started_ms=2_000_000_000_000,
        finished_ms=2_000_000_060_000,
        curve=curve,
        correct="" if curve else base64.b64encode(np.packbits(~wrong).tobytes()).decode(),
        num_images=0 if curve else IMAGES,
    )


def error_of(name: str, dense: dict[int, int]) -> int:
    """Wrong images: mask is worse than signs by 10, LRR's signs than AWS's by 5; all end alike but for mask."""
    if name.startswith("dense"):
        epochs = int(name.split("-e")[1].split("-")[0]) if "-e" in name else 20
        return dense[epochs]
    worse = {"mask": 20, "signed_mask": 9, "retrain": 8, "signed_mask_norm": 8, "level": 50}
    kind = name.split("-L11-")[1].split("-")[0]
    late = "-e100" in name
    return worse[kind] + (12 if name.startswith("lrr") and kind == "signed_mask" and not late else 0)


def records(study: Study, results: Path, trials: int = 10, dense: dict[int, int] | None = None) -> None:
    """Write made-up records of so many trials."""
    dense = dense or {20: 200, 100: 12, 176: 10}
    for chain, trainings in study.plan.chains().items():
        trial = trainings[0].trial
        if trial not in list(study.plan.trials)[:trials]:
            continue
        lines = []
        for name in wanted_names(study.plan, chain):
            lrr_signs = "lrr-L11-signed_mask-" in name or "norm_init-lrr" in name
            plain = name.split("-", 1)[1] if name.startswith(("stability", "lmc", "norm_init")) else name
            lines.append(made_up(name, error_of(plain, dense) + trial % 3, above=30.0 + trial if lrr_signs else 1.0))
        path = directory_of(study.name, results) / f"{chain}.json"
        ChainRecords(study.name, study.sha256, chain, "x", {}, "a machine", ("no problem found",), tuple(lines)).save(
            path
        )


def read(study: Study, results: Path) -> StudyResults:
    """Read the results as if the plan had been committed in time."""
    found = StudyResults.read(study, results, {name: study_named(name) for name in study.beside})
    return replace(found, commit="c" * 40, committed_ms=1_900_000_000_000)


def test_a_whole_study_is_judged_by_its_plan(tmp_path):
    study = study_named("depth")
    records(study, tmp_path)
    results = read(study, tmp_path)
    assert results.is_complete and results.departures == []
    verdicts = {(one.hypothesis.name, one.epochs): one.verdict for one in results.judged}
    assert len(verdicts) == 17 and all(one is not None and one.tested == 17 for one in verdicts.values())
    words = {place: one.word for place, one in verdicts.items() if one is not None}
    assert words["a", 20] == words["a", 100] == "equal within 1"
    assert words["b", 20] == words["b", 100] == "shown"
    assert words["c", 20] == "shown" and words["c", 100] == "not shown"  # speed alone
    # 0.2 points in every trial, but the images that differ are too few to say so of others
    assert words["b'", 20] == "not shown" and verdicts["b'", 20].p < 0.01  # type: ignore[union-attr]
    assert words["e", 20] == words["f, stability", 100] == "shown"
    files = {path.name for path in write_page(results, tmp_path / "page")}
    assert files == {"study.png", "study.svg", "accuracy.csv", "hypotheses.csv", "results.json", "page.md"}
    text = (tmp_path / "page" / "page.md").read_text()
    assert text.startswith(f"# {study.title}") and study.sha256 in text and "c" * 40 in text
    assert "**Departures from the plan:** none." in text and "17 claims were tested" in text
    assert "| 20 | 59.78 ± 0.18 |" in text and "no: speed alone" in text


def test_the_page_is_written_from_the_records_alone(tmp_path, capsys):
    records(study_named("depth"), tmp_path)
    write_study_page(study_named("depth"), tmp_path)
    assert {path.name for path in (tmp_path / "studies" / "depth").iterdir()} >= {"page.md", "study.png", "runs"}
    assert "speed alone" in capsys.readouterr().out


def test_a_study_on_its_way_judges_nothing(tmp_path):
    study = study_named("depth")
    records(study, tmp_path, trials=9)
    results = read(study, tmp_path)
    assert [one.verdict for one in results.judged] == [None] * 17
    text = page(results, "x.png")
    assert "9 of 10 trials are finished: numbers so far, and nothing is judged" in text and "shown" not in text
    with pytest.raises(ValueError, match="no trial of the study end is finished"):
        write_page(read(study_named("end"), tmp_path), tmp_path / "page")


def test_nothing_is_claimed_against_an_untrained_dense_network(tmp_path):
    study = study_named("depth")
    records(study, tmp_path, dense={20: 200, 100: 60, 176: 10})
    results = read(study, tmp_path)
    assert results.is_untrained(100) and not results.is_untrained(176)
    of_dense = [one for one in results.judged if one.hypothesis.name == "dense"]
    assert len(of_dense) == 2 and all(one.verdict is None and "untrained" in one.why_not for one in of_dense)
    text = page(results, "x.png")
    assert text.startswith("**The dense network is not trained to the end after 100 epochs")
    assert "The paper's ε, the sd of the dense error" not in text


def test_a_study_beside_another_uses_its_runs(tmp_path):
    depth, alpha = study_named("depth"), study_named("alpha")
    records(depth, tmp_path)
    results = read(alpha, tmp_path)
    assert results.trials == []  # only the other's
    records(alpha, tmp_path)
    results = read(alpha, tmp_path)
    assert results.is_complete and len(results.judged) == 12
    assert {one.verdict.word for one in results.judged if one.hypothesis.name == "interpolation" and one.verdict} == {
        "equal within 1"
    }


def test_departures_are_said(tmp_path):
    depth = study_named("depth")
    records(depth, tmp_path)
    path = directory_of("depth", tmp_path) / "aws-s12.json"
    chain = ChainRecords.load(path)
    unclean = [replace(run, commit=run.commit + "+") for run in chain.runs]
    replace(chain, plan_sha256="f" * 64, runs=tuple(unclean)).save(path)
    results = replace(read(depth, tmp_path), committed_ms=2_100_000_000_000)
    text = " ".join(results.departures)
    assert "another version of the plan: aws-s12." in text
    assert "Begun before this version of the plan was committed: aws-s11" in text
    assert "uncommitted changes: " in text
    assert "not committed" in " ".join(replace(results, commit="").departures)
