"""Test the scales of the figures against the paper's settings."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from harness.config import GemMinerConfig
from harness.reproduction.figure import FIGURES, Curve, Figure, figure_named
from harness.reproduction.paper import printed, rounded_up
from recipes.presets.figure_options import ReproductionOptions
from recipes.presets.figures import SCALES, paper, small
from recipes.presets.paper import cifar10, cifar100, imagenet, tiny_imagenet
from recipes.reproduce import ChangedSettings, FigureOptions, commands

PAPER = {"cifar10": cifar10, "cifar100": cifar100, "imagenet": imagenet, "tiny_imagenet": tiny_imagenet}
# the densities that the paper prints for each network
TABLE1 = {"resnet50": {0.27, 0.14}, "mobilenet_v2": {0.41, 0.21}, "mlp_mixer": {0.21, 0.11}}


@pytest.mark.parametrize("network", TABLE1)
def test_the_tables_have_the_papers_densities(network: str):
    table1, table2 = (paper(figure_named(name), "imagenet", network) for name in ("table1", "table2"))
    assert {rounded_up(0.8**level) for level in table1.levels} == TABLE1[network]
    assert set(table1.levels) < set(table2.levels)
    curves = figure_named("table2").curves
    assert all(printed("table2", "imagenet", network, curve, 0.8**level) for curve in curves for level in table2.levels)
    assert max(table2.levels) <= table2.config.num_levels


def test_gem_miner_is_shown_at_its_authors_densities():
    levels = paper(figure_named("fig4"), "cifar100", "resnet32").levels
    assert {0.05, 0.02} <= {rounded_up(0.8**level) for level in levels}


@pytest.mark.parametrize(("name", "dataset"), [("paper", "cifar10"), ("small", "digits")])
def test_gem_miner_alone_is_as_its_authors_have_it(name: str, dataset: str):
    """Check the authors' configurations of ResNet-20.

    λ is 3e-5 at density 3.72 %, and 1e-4 at 1.44 and 0.59 %. tests/training/test_gem_miner.py checks E = 150.
    """
    scale = SCALES[name](figure_named("gem_miner"), dataset, "resnet20")
    assert [scale.density(level) for level in scale.levels] == [0.0372, 0.0144, 0.0059]
    own = GemMinerConfig(num_train=45_000 if name == "paper" else None)
    assert [scale.gem_miner(level) for level in scale.levels] == [replace(own, penalty=p) for p in (3e-5, 1e-4, 1e-4)]
    assert scale.config.data.name == dataset and (scale.reduction is None) == (name == "paper")
    with_numbers = [
        printed("gem_miner", dataset, "resnet20", Curve("gem_miner", "level"), scale.density(level)) is not None
        for level in scale.levels
    ]
    assert with_numbers == [name == "paper"] * 3


def test_barriers_are_taken_where_the_paper_takes_them():
    scale = paper(figure_named("fig3"), "cifar100", "resnet50_cifar")
    assert rounded_up(0.8**scale.barrier_level) == 0.09 and scale.trials == 3 and scale.reduction is None


@pytest.mark.parametrize("dataset", ["digits", "fashion_mnist_small"])
def test_gem_miner_gets_as_many_epochs_as_a_ticket(dataset):
    config = small(figure_named("fig4"), dataset, "resnet32").config
    ticket = config.warmup_epochs + 11 * config.level_epochs + config.final.epochs
    assert config.gem_miner.score_epochs + config.gem_miner.finetune.epochs == ticket


@pytest.mark.parametrize("name", ["small", "smoke"])
def test_a_reduction_is_named(name: str):
    assert SCALES[name](figure_named("fig3"), "digits", "resnet20").reduction


def everything_shown() -> Iterator[tuple[Figure, str, str]]:
    """Yield each figure with each of its data sets and networks."""
    for figure in FIGURES.values():
        yield from ((figure, dataset, network) for dataset, networks in figure.subjects.items() for network in networks)


def test_every_full_size_command_begins_with_the_papers_settings(monkeypatch):
    """Check that each command lists all runs of three trials.

    Its settings are those of the recipes. tests/recipes/test_paper_settings.py compares these settings with the paper.
    """
    # Phase: list the commands of each figure
    for figure, dataset, network in everything_shown():
        words = ["recipes/reproduce.py", figure.name, "--dataset", dataset, "--network", network]
        monkeypatch.setattr(sys, "argv", [*words, "--list"])
        plan = FigureOptions(figure.name, dataset, network).plan
        start = f"python {' '.join(words)} --only "
        lines = commands(plan)
        assert all(line.startswith(start) for line in lines)
        listed, scale = [line.removeprefix(start) for line in lines], plan.scale
        # Phase: settings of the search and of the final trainings
        recipe = PAPER[dataset](network)
        own = {"num_levels": scale.config.num_levels}
        if figure.name == "gem_miner":
            own |= {"densities": (0.0372, 0.0144, 0.0059)}
        if "gem_miner" in figure.methods:  # its authors keep 5,000 of CIFAR's images for validation
            own |= {"gem_miner": GemMinerConfig(num_train=45_000)}
        assert scale.config == replace(recipe, **own) and scale.reduction is None
        assert max(scale.all_levels) <= scale.config.num_levels
        there = {"cifar100": "tiny_imagenet", "tiny_imagenet": "cifar100"}.get(dataset, "")
        moved = PAPER[there](network) if figure.name == "transfer" else None
        assert scale.used_on == moved
        # Phase: names of all runs
        cost = recipe.warmup_epochs + max(scale.levels) * recipe.level_epochs + recipe.final.epochs
        longer = cost if figure.name in ("fig3", "fig4", "claims", "table1", "table2") else None
        assert len(listed) == len(set(listed)) and set(listed) == set(_expected(figure, scale.levels, longer))


def _expected(figure: Figure, levels: tuple[int, ...], longer: int | None) -> Iterator[str]:
    """Yield the name of every run that a figure needs.

    Barriers are at density 0.8¹¹ = 0.09.

    Args:
        figure: The figure.
        levels: Levels of the final trainings.
        longer: Epochs of the longer dense training, as many as the deepest ticket costs; None for none.
    """
    for trial in (1, 2, 3):
        # Phase: dense trainings, searches and final trainings
        yield f"dense-t{trial}"
        if longer is not None:
            yield f"dense-e{longer}-t{trial}"
        yield from (f"{method}-s{trial}-search" for method in {curve.method for curve in figure.curves})
        used = [
            (c.method, c.kind + ("" if c.initialisation == "network" else f"-{c.initialisation}"))
            for c in figure.curves
        ]
        yield from (f"{method}-L{level:02d}-{use}-t{trial}" for method, use in used for level in levels)
        # Phase: comparisons, and the runs that only they need
        for question, curves in (("stability", figure.stability), ("lmc", figure.connectivity)):
            yield from (f"{question}-{c.method}-L11-{c.kind}-t{trial}" for c in curves)
        yield from (f"{c.method}-L11-{c.kind}-t{trial}-twin" for c in figure.stability)
        yield from (f"{method}-L11-level-t{trial}" for method in {*figure.initial_norm, *figure.signed_init})
        for question, methods in (("norm_init", figure.initial_norm), ("signed_init", figure.signed_init)):
            yield from (f"{question}-{method}-L11-level-t{trial}" for method in methods)


def test_smoke_differs_from_full_size_only_in_the_amount_of_training():
    for figure, dataset, network in everything_shown():
        paper, smoke = (SCALES[name](figure, dataset, network) for name in ("paper", "smoke"))
        for what in ("data", "model", "optim", "method", "precision"):
            assert getattr(smoke.config, what) == getattr(paper.config, what)
        assert smoke.config.final.lr_schedule == paper.config.final.lr_schedule
        ends = min(paper.levels), max(paper.levels)
        aimed = (0.0372, 0.0059) if figure.name == "gem_miner" else tuple((1 - 0.2) ** level for level in ends)
        assert smoke.config.densities == aimed
        penalties = [smoke.gem_miner(level).penalty for level in smoke.levels]
        assert penalties == [paper.gem_miner(level).penalty for level in ends]
        assert smoke.config.global_batch_size == 4 and "batch 4" in smoke.reduction
        assert smoke.finals.data == paper.finals.data and smoke.finals.final.epochs == 2
    with pytest.raises(ValueError, match=r"levels are \(1, 3\); there are only 2 densities"):
        _ = FigureOptions("fig3", scale="smoke", levels=(1, 3)).plan


def test_single_settings_can_be_changed_and_are_named():
    changes = ChangedSettings(weight_decay=0.005, level_epochs=6, final_epochs=8, global_batch_size=32)
    plan = FigureOptions("claims", scale="small", dataset="digits", levels=(5, 11), changes=changes).plan
    own = small(figure_named("claims"), "digits", "resnet20")
    config = plan.scale.config
    assert (config.optim.weight_decay, config.level_epochs, config.final.epochs) == (0.005, 6, 8)
    assert config.global_batch_size == 32
    assert (config.optim.lr, config.warmup_epochs) == (own.config.optim.lr, own.config.warmup_epochs)
    assert plan.scale.variant == "-levels-5-11-weight-decay-0.005-level-epochs-6-final-epochs-8-global-batch-size-32"
    assert plan.scale.reduction.startswith(own.reduction)
    assert "weight decay 0.005 instead of 0.0005; level epochs 6 instead of 6" in plan.scale.reduction
    moved = FigureOptions("transfer", scale="small", dataset="digits", width=8, changes=changes).plan.scale
    assert moved.finals.data.name == "fashion_mnist_small" and moved.finals.model.width == moved.config.model.width == 8
    for one in (moved.config, moved.finals):
        assert (one.optim.weight_decay, one.final.epochs, one.global_batch_size) == (0.005, 8, 32)
    paper = FigureOptions("fig3", changes=ChangedSettings(lr=0.01)).plan.scale
    assert paper.reduction == "lr 0.01 instead of 0.1"
    assert ChangedSettings().applied(figure_named("fig3"), paper) is paper


def test_a_width_that_the_paper_does_not_show_is_a_reduction():
    assert [FigureOptions("fig4", width=width).plan.scale.reduction for width in (None, 16, 32)] == [None] * 3
    assert FigureOptions("fig4", width=8).plan.scale.reduction == "width 8"
    assert FigureOptions("fig3", width=16, changes=ChangedSettings(lr=0.01)).plan.scale.reduction == (
        "width 16; lr 0.01 instead of 0.1"
    )


def test_settings_that_a_figure_ignores_are_refused():
    with pytest.raises(ValueError, match=r"--final-epochs, --lr: the method of gem_miner has its own settings"):
        _ = FigureOptions("gem_miner", changes=ChangedSettings(lr=0.01, final_epochs=3)).plan
    small = FigureOptions("gem_miner", changes=ChangedSettings(global_batch_size=32)).plan.scale
    assert small.config.global_batch_size == 32 and small.reduction == "global batch size 32 instead of 128"


@pytest.mark.parametrize("synchronised", [False, True])
def test_a_figure_on_several_gpus_can_synchronise_batchnorm(synchronised):
    options = ReproductionOptions("table2", sync_batchnorm=synchronised)
    assert options.config(options.plan.scale.config).sync_batchnorm == synchronised
