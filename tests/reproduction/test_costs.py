"""Test a plan's estimated epochs and hours, and its commands."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness.config.own_loop import OWN_LOOP
from harness.lineage.nodes.record import Metric
from harness.reproduction.costs import costs, given_rate, measured_rate
from harness.reproduction.study_records import ChainRecords, RunLine
from recipes.reproduce import STUDIES, ReproductionOptions, commands, show_list, study_commands, study_named


def test_epochs_and_hours_of_each_chain_and_of_all(plan):
    chains = plan.shard(1, 2)
    lines = costs(plan, chains, given_rate(90))
    cells = [line.split() for line in lines]
    assert cells[0] == ["chain", "epochs", "comparisons", "hours"]
    assert [row[0] for row in cells[1:-2]] == chains
    for name, epochs, _, hours in cells[1:-2]:
        assert int(epochs) == plan.epochs(name) and float(hours) == pytest.approx(plan.epochs(name) / 40, abs=0.0051)
    total = sum(map(plan.epochs, chains))
    of_chains = sum(pair.first.chain in chains for pair in plan.pairs())
    assert cells[-2][:3] == ["all", str(total), str(of_chains)] and float(cells[-2][3]) == pytest.approx(
        total / 40, abs=0.0051
    )
    assert lines[-1] == "hours at 90 seconds per epoch (given), without comparisons"
    # finished chains are marked as recorded and left out of the sum
    left = costs(plan, chains, None, finished=chains[:1])
    rest = total - plan.epochs(chains[0])
    assert left[1].endswith("recorded") and left[-2].split()[:2] == ["remaining", f"{rest:,}"]
    assert left[-1].endswith("; give --seconds-per-epoch")
    with pytest.raises(ValueError, match="--seconds-per-epoch 0: give a number above 0"):
        given_rate(0)


def test_the_rate_is_measured_from_finished_trainings_of_the_same_network_data_and_batch(made_up, plan):
    assert measured_rate(plan, made_up.nodes) is None

    def training(name: str, seconds: int, epochs: int, tags: dict[str, str] | None = None, **search: object) -> None:
        losses = tuple(Metric("train_loss", 1.0, epoch, 1) for epoch in range(1, epochs + 1))
        rest = {"started_ms": 60_000 - 1000 * seconds, "metrics": losses}
        config = {"search": made_up.config["search"] | search}
        made_up.commit(name, "training", {"kind_of_training": "dense"} | (tags or {}), config=config, **rest)

    made_up.minutes = 1
    training("slow", 40, 4)
    training("usual", 12, 6)
    training("other usual", 3, 1)
    training("other data", 50, 1, {"data": "fashion_mnist_small"})
    training("other network", 50, 1, model={"name": "resnet8", "width": 4})
    training("other batch", 50, 1, global_batch_size=32)
    training("not trained", 50, 0)
    made_up.commit("own loop", "level", {"level": "01"}, config={OWN_LOOP: {}})  # it has no settings of a search
    rate = measured_rate(plan, made_up.nodes)
    assert rate is not None and rate.seconds_per_epoch == 3
    assert rate.source == "measured, median of 3 finished trainings"


def test_the_rate_is_measured_from_records_in_a_fresh_clone(plan, tmp_path: Path):
    from harness.lineage.nodes.local_files import LocalNodes

    longer = replace(plan, scale=replace(plan.scale, further_epochs=(20,)))

    def line(name: str, seconds: int) -> RunLine:
        return RunLine(name, "k", name, (), {}, {}, {}, "c", 0, 1000 * seconds)

    runs = (line("dense-t1", 4), line("dense-e20-t1", 60), line("aws-s1-L03", 99))
    records = ChainRecords("s", "", "dense-t1", "", {}, "", (), runs)
    rate = measured_rate(longer, LocalNodes(tmp_path), [records])
    assert rate is not None and rate.seconds_per_epoch == 2  # the median of 1 and 3 s per epoch; levels are not counted


@pytest.mark.parametrize("words", [["--seconds-per-epoch", "2"], ["--seconds_per_epoch=2"]])
def test_listed_commands_can_be_pasted_and_costs_go_beside_them(monkeypatch, capsys, tmp_path: Path, words):
    options = ["fig3", "--scale", "small", "--shard", "1/3", "--out", "there"]
    monkeypatch.setattr(sys, "argv", ["recipes/reproduce.py", *options, "--list", *words])
    asked = ReproductionOptions("fig3", scale="small", shard="1/3", seconds_per_epoch=2, runs=tmp_path)
    show_list(asked, None)
    printed = capsys.readouterr()
    chains = asked.plan.shard(1, 3)
    start = "python recipes/reproduce.py fig3 --scale small --out there --only "
    assert printed.out.splitlines() == [start + name for name in asked.plan.names(chains)]
    assert all(line.startswith("# ") for line in printed.err.splitlines()) and "# all " in printed.err
    listed = [{line.split(" --only ")[1] for line in commands(asked.plan, [chain])} for chain in asked.plan.chains()]
    assert set.union(*listed) == set(asked.plan.names()) and sum(map(len, listed)) == len(set.union(*listed))


def test_a_study_lists_a_command_for_each_trial_that_is_not_recorded(monkeypatch, capsys, tmp_path: Path):
    name = min(path.stem for path in STUDIES.glob("*.toml"))
    monkeypatch.setattr(sys, "argv", ["recipes/reproduce.py", "--study", name, "--list"])
    study = study_named(name)
    trials = len(study.plan.trials)
    lines = [f"python recipes/reproduce.py --study {name} --shard {n}/{trials}" for n in range(1, trials + 1)]
    show_list(ReproductionOptions(study=name, results=tmp_path, runs=tmp_path), study)
    printed = capsys.readouterr()
    assert printed.out.splitlines() == lines
    assert f"{sum(map(study.plan.epochs, study.plan.chains())):,}" in printed.err
    assert study_commands(study, study.units(2, trials)) == lines[1:2]
