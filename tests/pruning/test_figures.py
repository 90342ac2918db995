"""Test that a figure's page finds exactly the runs made for it.

The runs are real searches and trainings.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.common.digest import sha256_tensors
from harness.config import GemMinerConfig, OptimConfig, Schedule, search_from_json
from harness.experiment.experiment import Experiment
from harness.lineage.proof import verify
from harness.lineage.store import open_store
from harness.pruning import PruningSchedule
from harness.reproduction.collect import collect
from harness.reproduction.figure import Curve, figure_named
from harness.reproduction.figure_plan import FigurePlan, Scale
from harness.reproduction.figure_runner import FigureRunner
from tests.pruning.searching import tag

pytestmark = pytest.mark.long


def made(experiment: Experiment, plan: FigurePlan, used_on: Experiment | None = None) -> FigureRunner:
    work = FigureRunner(experiment, plan, used_on)
    work.make(plan.chains())
    results = collect(experiment.store, plan, work.settings, strict=False)
    assert results.missing == []
    for one, node in results.trained.items():
        assert node.key == work.train(one).key
    return work


def plan_of(experiment: Experiment, figure: str, **scale: object) -> FigurePlan:
    return FigurePlan(figure_named(figure), Scale(experiment.config, levels=(1, 2), trials=1, **scale))


@pytest.mark.parametrize("figure", ["controls", "rewinding"])
def test_every_run_of_a_figure_is_found_by_its_page(experiment: Experiment, figure: str) -> None:
    made(experiment, plan_of(experiment, figure))


def test_gem_miner_has_a_penalty_for_each_density(experiment: Experiment, tmp_path: Path) -> None:
    gem = GemMinerConfig(score_epochs=3, freeze_every_epochs=1, finetune=Schedule(1, "constant"))
    config = replace(experiment.config, densities=(0.5, 0.1), num_levels=2, gem_miner=gem, runs=tmp_path / "runs")
    own = Experiment(experiment.world, open_store(config.runs, offline=True), config)
    plan = plan_of(own, "gem_miner", penalties={1: 0.01, 2: 1e-4})
    work = made(own, plan)
    for level, penalty in plan.scale.penalties.items():
        (one,) = plan.of_curve(Curve("gem_miner", "level"), level)
        scores = own.archive.load(work.train(one).record.parents[0].key)
        assert scores.record.config["optim"]["weight_decay"] == 2 * penalty
    records = [record for record in own.store.local.records() if record.kind in ("level", "training")]
    minutes = sum(record.finished_ms - record.started_ms for record in records) / 60_000
    assert len(records) == 5 and collect(own.store, plan).provenance.minutes == pytest.approx(minutes)
    # a launch with other values of settings that Gem-Miner ignores reuses all runs
    again = Experiment(experiment.world, own.store, replace(config, level_epochs=2, warmup_epochs=3))
    made(again, plan_of(again, "gem_miner", penalties=plan.scale.penalties))
    assert len([record for record in own.store.local.records() if record.kind in ("level", "training")]) == 5


def test_gem_miner_in_figure_4_and_with_equal_numbers_of_weights(experiment: Experiment, tmp_path: Path) -> None:
    gem = GemMinerConfig(score_epochs=3, freeze_every_epochs=1, finetune=Schedule(1, "constant"))
    config = replace(experiment.config, gem_miner=gem, runs=tmp_path / "runs")
    own = Experiment(experiment.world, open_store(config.runs, offline=True), config)
    plan = plan_of(own, "fig4")
    work = made(own, plan)

    # Phase: its ticket on another θ_init. Kept weights, also of the classifier, have its signs.
    (one,) = plan.of_curve(Curve("gem_miner", "signed_mask"), 2)
    ticket, trained = work.ticket(one), work.train(one)
    begun = {name: tensor.abs() for name, tensor in own.theta_init(101).params.items()}
    for name, sign in ticket.signed_mask.signs.items():
        if name not in own.partition.norm:
            begun[name] = torch.where(sign == 0, own.theta_init(101).params[name], begun[name] * sign)
    ticket.mask.apply_(begun)
    assert tag(trained, "start_digest") == sha256_tensors(begun)
    assert "fc.weight" in trained.mask.tensors and trained.mask.equal(ticket.mask)
    assert not trained.checkpoint.params["fc.weight"][~trained.mask.tensors["fc.weight"]].any()
    assert verify(own.store, trained.key).problems == []

    # Phase: the dense network for as many epochs as the deepest ticket (1 warm-up, 1 per level, 2 final)
    assert [work.train(dense).checkpoint.epochs for dense in plan.trainings() if dense.curve is None] == [2, 5]

    # Phase: the figure with equal numbers of weights. It reuses AWS's runs, and only Gem-Miner runs again.
    before = {record.key for record in own.store.local.records()}
    equal = plan_of(own, "fig4_equal")
    again = made(own, equal)
    new = [record for record in own.store.local.records() if record.key not in before]
    assert {record.tags["method"] for record in new} == {"gem_miner"}
    head, every = equal.num_weights[1], sum(equal.num_weights)
    for level in (1, 2):
        ours, theirs = (again.ticket(equal.of_curve(Curve(m, "level"), level)[0]) for m in ("aws", "gem_miner"))
        aimed_at = PruningSchedule.of(search_from_json(theirs.record.config["search"])).density(level) * every
        assert aimed_at == pytest.approx(ours.mask.num_remaining + head, abs=2)
        # Each freezing rounds down. The authors' rule can keep fewer weights.
        assert theirs.record.config["search"]["gem_miner"]["freezing"] == "exact"
        assert aimed_at - 2 <= theirs.mask.num_remaining <= aimed_at


def test_short_levels_are_found_by_their_page(experiment: Experiment) -> None:
    plan = plan_of(experiment, "short_levels")
    work = made(experiment, plan)
    ticket = work.ticket(plan.of_curve(Curve("aws_full", "retrain"), 2)[0])
    assert ticket.checkpoint.epochs == 3 * experiment.config.final.epochs
    assert len([metric for metric in ticket.record.metrics if metric.name == "alpha_mean"]) == 2


def test_tickets_transfer_to_another_data_set(experiment: Experiment, other_data: Experiment) -> None:
    there = replace(other_data.config, final=replace(other_data.config.final, epochs=1))
    plan = plan_of(experiment, "transfer", used_on=there)
    beside = experiment.beside(there)
    work = made(experiment, plan, beside)
    signed = [one for one in plan.trainings() if one.kind == "signed_mask"]
    assert len(signed) == 4 and beside.archive.delivery is experiment.archive.delivery
    for one in signed:
        node = work.train(one)
        assert (tag(node, "data"), tag(node, "transferred"), node.checkpoint.epochs) == ("noise_12", "true", 1)
        assert verify(experiment.store, node.key).problems == []


def test_a_longer_final_training_shares_the_search(experiment: Experiment) -> None:
    """Check that a launch with longer final trainings reuses the levels.

    The levels keep the record of the launch that made them, with its settings of final trainings.
    """
    plan = plan_of(experiment, "fig6")
    made(experiment, plan)
    longer = replace(experiment.config, final=replace(experiment.config.final, epochs=3))
    other = Experiment(experiment.world, experiment.store, longer)
    work = made(other, plan_of(other, "fig6"))
    assert work.levels(plan.of_curve(plan.figure.curves[0], 1)[0])[1].record.config["search"]["final"]["epochs"] == 2
    # a dense training has no levels, so launches with other level settings reuse it
    short = Experiment(experiment.world, experiment.store, replace(longer, level_epochs=2))
    dense = made(short, plan_of(short, "fig6")).train(plan.dense()[0])
    assert dense.record.config["search"]["level_epochs"] == 1


def test_a_ticket_that_does_not_fit_the_other_data_is_refused_before_any_search(experiment, other_data) -> None:
    wide = replace(other_data.config, model=replace(other_data.config.model, width=4), optim=OptimConfig())
    with pytest.raises(ValueError, match="a ticket that goes over to noise_12 does not fit the network"):
        FigureRunner(experiment, plan_of(experiment, "transfer", used_on=wide), experiment.beside(wide))
