"""Test studies: plans, runs, and records that stand for runs.

A fresh clone has the records but not the runs.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.experiment.experiment import Experiment
from harness.lineage.nodes.local_files import LocalNodes
from harness.lineage.proof import Findings
from harness.lineage.proof.findings import Finding
from harness.reproduction.figure_plan import Scale
from harness.reproduction.figure_runner import FigureRunner, MadeChain
from harness.reproduction.study import Study, read_study
from harness.reproduction.study_records import (
    ChainRecords,
    check_made_anew,
    compare_again,
    directory_of,
    finished_chains,
    record_chain,
    wanted_names,
)
from recipes.presets import studies
from recipes.presets.figures import SCALES
from recipes.reproduce import STUDIES
from tests.pruning.searching import open_experiment

pytestmark = pytest.mark.long  # searches take seconds

PLAN = """
title = "A small study"
question = "Does it go through?"
margin_points = 1.0
stopping = "Both trials."
curves = ["retrain (aws)", "signed_mask (aws)", "signed_mask (aws α=zero)"]
stability = ["signed_mask (aws)"]
connectivity = ["signed_mask (aws α=zero)"]
initial_norm = ["aws"]

[regime]
scale = "tiny"
dataset = "digits"
network = "resnet8"
level = 1
first_trial = 11
trials = 2
final_epochs = [2, 4]

[[hypotheses]]
name = "a"
says = "AWS's sign reaches its ticket"
of = "accuracy"
first = "signed_mask (aws)"
second = "retrain (aws)"
expects = "equal"
"""
TWICE = PLAN[PLAN.index("[[hypotheses]]") :] + "\n[[hypotheses]]"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Experiment, Study]]:
    """Yield an open experiment and a study with its settings."""
    where = tmp_path_factory.mktemp("study")
    (where / "small.toml").write_text(PLAN, encoding="utf-8")
    opened = open_experiment(where)
    experiment = next(opened)
    scale = Scale(experiment.config, (1,))
    yield experiment, read_study(where / "small.toml", {"tiny": lambda *_: scale})
    next(opened, None)


def edited(tmp_path: Path, before: str, after: str) -> Path:
    """Write the plan with one text replaced, and return its path."""
    assert before in PLAN
    (path := tmp_path / "changed.toml").write_text(PLAN.replace(before, after, 1), encoding="utf-8")
    return path


def test_a_plan_names_every_run_of_both_lengths(tiny):
    # Phase: chains of the plan
    plan, study = tiny[1].plan, tiny[1]
    assert study.final_epochs == (2, 4)
    assert list(plan.chains()) == [
        "dense-t11",
        "dense-t12",
        "aws-s11",
        "aws-s12",
        "aws-alpha_zero-s11",
        "aws-alpha_zero-s12",
    ]
    # Phase: runs of a chain; the deepest ticket costs warm-up, a level and the longest final training
    assert [str(one) for one in plan.chains()["dense-t11"]] == ["dense-t11", "dense-e4-t11", "dense-e6-t11"]
    assert list(wanted_names(plan, "aws-s11")) == [
        "aws-L01-retrain-t11",
        "aws-L01-retrain-e4-t11",
        "aws-L01-signed_mask-t11",
        "aws-L01-signed_mask-e4-t11",
        "aws-L01-signed_mask-t11-twin",
        "aws-L01-signed_mask-e4-t11-twin",
        "aws-L01-level-t11",
        "stability-aws-L01-signed_mask-t11",
        "stability-aws-L01-signed_mask-e4-t11",
        "norm_init-aws-L01-level-t11",
    ]
    assert plan.epochs("aws-s11") == 2 + 3 * (2 + 4)
    # Phase: α=zero is compared with `retrain` of its own search
    pairs = [pair for pair in plan.pairs() if pair.question == "lmc"]
    assert {(str(pair.first.curve), str(pair.second.curve)) for pair in pairs} == {
        ("signed_mask (aws α=zero)", "retrain (aws α=zero)")
    }


def test_a_share_is_whole_trials(tiny):
    study = tiny[1]
    assert study.units(1, 2) == ["dense-t11", "aws-s11", "aws-alpha_zero-s11"]
    assert sorted(study.units(1, 2) + study.units(2, 2)) == sorted(study.plan.chains())
    with pytest.raises(ValueError, match="shard 3/2"):
        study.units(3, 2)


def made(tiny: tuple[Experiment, Study], chain: str, results: Path) -> Path:
    """Make or load a chain, record it, and return the record's path."""
    experiment, study = tiny
    paths = []

    def keep(one: MadeChain) -> None:
        paths.append(record_chain(experiment, study, one, results))

    FigureRunner(experiment, study.plan).make([chain], keep)
    return paths[0]


@pytest.mark.parametrize("chain", ["dense-t11", "aws-s11", "aws-alpha_zero-s12"])
def test_records_hold_what_the_runs_measured(tiny, tmp_path, chain):
    experiment, study = tiny
    assert finished_chains(study, tmp_path) == {}
    path = made(tiny, chain, tmp_path)
    assert path == directory_of("small", tmp_path) / f"{chain}.json" and path.stat().st_size < 100_000
    found = finished_chains(study, tmp_path)[chain]
    assert found == ChainRecords.load(path) and found.plan_sha256 == study.sha256
    assert "no problem found" in found.verified[0]
    assert f", {torch.backends.cpu.get_cpu_capability()}, " in found.hardware
    runs = {run.name: run for run in found.runs}
    assert {*wanted_names(study.plan, chain)} <= runs.keys()
    for run in found.runs:
        record = experiment.store.local.load(run.key)
        assert (run.metrics, run.files, run.tags) == (record.last_metrics(), record.files, record.tags)
        right = run.right()
        assert right is not None
        if run.curve is None:
            assert 100 * np.mean(~right) == pytest.approx(run.metrics["test_error_percent"], abs=1e-9)
        else:
            assert 100 * np.mean(~right, axis=1) == pytest.approx(run.curve.error_percent, abs=1e-9)
    spent = {name: run.metrics.get("epochs_total") for name, run in runs.items()}
    if chain == "aws-s11":  # 2 epochs for warm-up and one level, plus the final training
        assert (spent["aws-L01-retrain-t11"], spent["aws-L01-retrain-e4-t11"]) == (2 + 2, 2 + 4)
    assert not (chain == "dense-t11" and [*spent.values()] != [2, 4, 6])


def test_a_chain_made_again_has_the_recorded_bits(tiny, tmp_path):
    experiment, study = tiny
    recorded = ChainRecords.load(made(tiny, "aws-s11", tmp_path))
    rows = []
    FigureRunner(experiment, study.plan).make(
        ["aws-s11"], lambda again: rows.extend(compare_again(experiment.store, recorded, again))
    )
    assert [row["run"] for row in rows] == [run.name for run in recorded.runs]
    assert all(row["recorded"] == row["repeated"] for row in rows)
    assert {row["files with equal bits"] for row in rows if "retrain" in row["run"]} == {"3 of 3"}
    # a different checkpoint is detected
    other = replace(recorded.runs[-4], files={**recorded.runs[-4].files, "checkpoint.safetensors": "0" * 64})
    changed = replace(recorded, runs=(other,))
    FigureRunner(experiment, study.plan).make(
        ["aws-s11"], lambda again: rows.extend(compare_again(experiment.store, changed, again))
    )
    assert rows[-1]["files with equal bits"].split(" of ")[0] != rows[-1]["files with equal bits"].split(" of ")[1]


def test_inconsistent_records_are_refused(tiny, tmp_path):
    path = made(tiny, "dense-t11", tmp_path)
    values = json.loads(path.read_text())
    values["runs"][0]["metrics"]["test_error_percent"] += 0.2
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"dense-t11\.json holds no records of a study.*images of dense-t11"):
        finished_chains(tiny[1], tmp_path)


def test_incomplete_records_are_ignored(tiny, tmp_path):
    path = made(tiny, "dense-t11", tmp_path)
    whole = ChainRecords.load(path)
    replace(whole, runs=whole.runs[:-1]).save(path)
    assert finished_chains(tiny[1], tmp_path) == {}


@pytest.fixture(scope="module")
def recorded_once(tiny, tmp_path_factory) -> str:
    """Return the text of the record file of a search's chain."""
    return made(tiny, "aws-s11", tmp_path_factory.mktemp("once")).read_text()


def other_run(name: str, **changed):
    """Return a change of one run in a record file's JSON.

    Args:
        name: Name of the run.
        changed: New values by field; dictionaries are merged into the old value.
    """

    def change(values: dict) -> None:
        run = next(run for run in values["runs"] if run["name"] == name)
        for field, value in changed.items():
            run[field] = {**run[field], **value} if isinstance(value, dict) else value

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda values: values.update(study="other"), "study is 'other' instead of 'small'"),
        (lambda values: values.update(chain="aws-s12"), "chain is 'aws-s12'"),
        (lambda values: values.update(subject="resnet56 on digits"), "subject is 'resnet56 on digits'"),
        (lambda values: values.update(verified=[]), "it was not verified"),
        (lambda values: values["runs"].append(values["runs"][0]), "two runs have one name"),
        (
            other_run("aws-L01-signed_mask-t11", tags={"init_seed": "112"}),
            "init_seed of aws-L01-signed_mask-t11 is 112",
        ),
        (other_run("aws-L01-retrain-t11", tags={"sgd_seed": "12"}), "sgd_seed of aws-L01-retrain-t11 is 12"),
        (other_run("aws-L01-retrain-t11", metrics={"epochs_total": 20.0}), "was trained for 18 epochs instead of 2"),
        (other_run("aws-L01-retrain-e4-t11", parents=[["f" * 64, "trained-from"]]), "is not made from aws-s11-L01"),
        (other_run("stability-aws-L01-signed_mask-t11", parents=[]), "compares other networks"),
        (other_run("aws-L01-retrain-t11", metrics={"test_error_percent": float("nan")}), "has no test error"),
        (other_run("norm_init-aws-L01-level-t11", metrics={"barrier": -1.0}), "give a barrier of"),
        (other_run("aws-s11-L00", tags={"sgd_seed": "12"}), "sgd_seed of aws-s11-L00 is 12"),
        (other_run("aws-s11-L01", metrics={"density": 0.5}), "aws-s11-L01 has the density 0.5 instead of 0.8"),
        (lambda values: values.update(hardware=None), "hardware is None"),
        (lambda values: values.update(code="x"), "code is 'x'"),
        (other_run("aws-L01-retrain-t11", commit=None), "commit is None"),
        (lambda values: values["runs"][0].update(tags=None), "tags is None"),
        (other_run("aws-L01-retrain-t11", tags={"sgd_seed": None}), "tags is {.*None"),
        (other_run("aws-L01-retrain-t11", started_ms="x"), "started_ms is 'x'"),
        (other_run("aws-L01-retrain-t11", hardware=7), "hardware is 7"),
        (other_run("aws-L01-retrain-t11", key="f" * 64), "not the digest of its determinants"),
    ],
)
def test_records_that_contradict_their_run_names_are_refused(tiny, recorded_once, tmp_path, change, told):
    values = json.loads(recorded_once)
    change(values)
    (path := directory_of("small", tmp_path) / "aws-s11.json").parent.mkdir(parents=True)
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=told) as error:
        finished_chains(tiny[1], tmp_path)
    assert str(error.value).startswith(str(path))


def test_records_copied_to_another_trial_are_refused(tiny, tmp_path):
    path = made(tiny, "dense-t11", tmp_path)
    text = path.read_text().replace("dense-t11", "dense-t12").replace("-t11", "-t12")
    path.with_name("dense-t12.json").write_text(text)
    with pytest.raises(
        ValueError, match=r"dense-t12\.json.*sgd_seed of dense-t12 is 11 instead of 12.*rerun the chain"
    ):
        finished_chains(tiny[1], tmp_path)


def test_reproducing_a_chain_needs_a_directory_without_the_recorded_runs(tiny, tmp_path):
    recorded = ChainRecords.load(made(tiny, "dense-t11", tmp_path))
    nodes = tiny[0].store.local
    with pytest.raises(ValueError, match="would be a cache hit; give --runs an empty directory"):
        check_made_anew(nodes, recorded, tmp_path)
    check_made_anew(LocalNodes(tmp_path / "none"), recorded, tmp_path)
    later = replace(recorded, runs=tuple(replace(run, started_ms=run.started_ms - 1) for run in recorded.runs))
    check_made_anew(nodes, later, tmp_path)  # the local runs are from another time than the records


def test_runs_that_fail_verification_are_not_recorded(tiny, tmp_path, monkeypatch):
    from harness.reproduction import study_records

    real = study_records.verify

    def spoiled(*args, **options) -> Findings:
        findings = real(*args, **options)
        node = type("Node", (), {"key": "0" * 64, "name": "x", "run_id": None})()
        findings.add(node, [Finding("signs", False, "planted")])
        return findings

    monkeypatch.setattr(study_records, "verify", spoiled)
    with pytest.raises(ValueError, match="planted"):
        made(tiny, "dense-t12", tmp_path)
    assert not directory_of("small", tmp_path).exists()


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ('title = "A small study"', "", "the plan lacks title"),
        ("trials = 2", "trails = 2", "regime lacks trials"),
        ("level = 1", "level = 1\nseed = 3", "regime has unknown fields seed"),
        ("final_epochs = [2, 4]", "final_epochs = [3]", "final_epochs begin with 3, but the scale has 2"),
        (
            "final_epochs = [2, 4]",
            "final_epochs = [2]",
            r"final_epochs are \[2\]; give 2 and 10 \(or 4\), to tell",
        ),
        ("final_epochs = [2, 4]", "final_epochs = [2, 3, 10]", r"final_epochs are \[2, 3, 10\]; give 2 and 10"),
        ("retrain (aws)", "retrain aws", "'retrain aws' is no curve"),
        ("[[hypotheses]]", TWICE, "two hypotheses have the name a; give each its own"),
        ("retrain (aws)", "retrain (awz)", "unknown method 'awz'"),
        ("α=zero", "α=null", "unknown distribution of α 'null'"),
        ('expects = "equal"', 'expects = "equal"\nepochs = [7]', r"hypothesis a: epochs are \(7,\)"),
        ('expects = "equal"', 'expects = "better"', "expects is 'better'; allowed: greater"),
        ("margin_points = 1.0", "margin_points = ", "changed.toml"),
        ("margin_points = 1.0", "margin_points = 0", "margin_points is 0; it must be above 0"),
        ("margin_points = 1.0", "margin_points = nan", "margin_points is nan; it must be above 0"),
        ("margin_points = 1.0", "margin_points = inf", "margin_points is inf; it must be above 0, and finite"),
        ("trials = 2", "trials = 41", "trials is 41; it must be 1 to 40"),
        ("trials = 2", "trials = 0", "trials is 0; it must be 1 to 40"),
        ("level = 1", "level = 80", "level is 80; no weight of resnet8 is left there"),
        ("final_epochs = [2, 4]", "final_epochs = [2, 4, 4]", r"final_epochs are \[2, 4, 4\]; give"),
        ('expects = "equal"', 'expects = "equal"\nepochs = []', r"hypothesis a: epochs are \(\)"),
        ('expects = "equal"', 'expects = "equal"\nepochs = [2, 2]', r"hypothesis a: epochs are \(2, 2\)"),
        ('second = "retrain (aws)"', 'second = "signed_mask (aws)"', r"both sides are signed_mask \(aws\)"),
        ('second = "retrain (aws)"', 'second = "dense"\ndense_epochs = 2', "less than the 4 epochs of the other"),
        (
            'second = "retrain (aws)"',
            'second = "dense"\ndense_epochs = "5"',
            "dense_epochs is '5'; give a whole number",
        ),
        ('second = "retrain (aws)"', 'second = "dense"\ndense_epochs = 5', "dense_epochs is 5, but dense is"),
        ('expects = "equal"', 'expects = "equal"\ndense_epochs = 4', "dense_epochs needs the accuracy of a side"),
        ('question = "D', 'beside = "depth"\nquestion = "D', "beside is 'depth'; give a list of texts"),
        ('question = "D', 'beside = ["changed"]\nquestion = "D', "give names of other studies"),
        ("trials = 2", "trials = true", "regime: trials is True; give a whole number"),
        ("trials = 2", 'trials = "2"', "regime: trials is '2'; give a whole number"),
        ("level = 1", "level = 1.0", "regime: level is 1.0; give a whole number"),
        ("first_trial = 11", "first_trial = 0", "first_trial is 0; it must be 1 or more"),
        ("final_epochs = [2, 4]", "final_epochs = 2", "final_epochs is 2; give a list of whole numbers"),
        ("final_epochs = [2, 4]", "final_epochs = []", "regime: final_epochs is empty"),
        ("margin_points = 1.0", 'margin_points = "1"', "margin_points is '1'; give a number"),
        ('title = "A small study"', "title = 3", "the plan: title is 3; give a text"),
        ('name = "a"', "name = 1", "name is 1; give a text"),
        ('initial_norm = ["aws"]', 'initial_norm = ["awz"]', "unknown method 'awz'"),
        ('scale = "tiny"', 'scale = "tinny"', "unknown scale 'tinny'"),
        ('"retrain (aws)", "signed', '"retrain (imp)", "signed', r"retrain \(imp\) has no second length \(4 epochs\)"),
        ('stability = ["signed_mask (aws)"]', 'stability = ["retrain (wr)"]', r"retrain \(wr\) has no second noise"),
    ],
)
def test_an_invalid_plan_is_an_error_with_its_file_name(tiny, tmp_path, before, after, told):
    with pytest.raises(ValueError, match=told) as error:
        read_study(edited(tmp_path, before, after), {"tiny": lambda *_: tiny[1].plan.scale})
    assert str(error.value).startswith(str(tmp_path / "changed.toml"))


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ('network = "resnet56"', 'network = "resnet57"', "unknown network 'resnet57'"),
        ('dataset = "digits"', 'dataset = "digit"', "unknown data set of --scale small 'digit'"),
        ('first = "signed_mask (aws)"', 'first = "signed_mask (imp)"', "needs the run imp-L11-signed_mask-t11"),
        ('first = "level (lrr)"', 'first = "retrain (lrr)"', "needs the run norm_init-lrr-L11-retrain-t11"),
        ('stability = ["retrain (lrr)", "signed_mask (lrr)", ', "stability = [", "stability-lrr-L11-signed_mask-t11"),
        ('title = "', 'beside = ["depths"]\ntitle = "', "unknown study 'depths'"),
        ('title = "', 'beside = ["end"]\ntitle = "', "the study end beside it has another regime"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(tmp_path, monkeypatch, before, after, told):
    for path in STUDIES.glob("*.toml"):
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    text = (tmp_path / "depth.toml").read_text(encoding="utf-8")
    assert before in text
    (tmp_path / "depth.toml").write_text(text.replace(before, after, 1), encoding="utf-8")
    monkeypatch.setattr(studies, "STUDIES", tmp_path)
    with pytest.raises(ValueError, match=told):
        studies.study_named("depth")


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_plans_of_this_repository_can_be_read(path):
    study = read_study(path, SCALES)
    assert study.hypotheses and len(study.plan.trials) >= 8
    assert study.final_epochs[-1] == 5 * study.final_epochs[0]


def test_the_plans_are_part_of_the_package():
    """Check that the package data include all plans.

    So `--study` works after installation.
    """
    found = tomllib.loads((STUDIES.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = found["tool"]["setuptools"]["package-data"]["recipes"]
    packed = {path for pattern in patterns for path in STUDIES.parent.glob(pattern)}
    assert {*STUDIES.iterdir()} <= packed
