"""The sizes that figures are made at, against the paper's own tables."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from harness.reproduction.figure import figure_named
from harness.reproduction.paper import printed, rounded_up

# the densities that the paper prints for each network
TABLE1 = {"resnet50": {0.27, 0.14}, "mobilenet_v2": {0.41, 0.21}, "mlp_mixer": {0.21, 0.11}}


@pytest.fixture
def scales(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "recipes")
    yield importlib.import_module("scales")
    for name in ("scales", "aws_cifar100", "aws_digits", "aws_imagenet", "aws_tiny_imagenet"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("network", TABLE1)
def test_the_tables_have_the_papers_densities(scales, network: str):
    table1, table2 = (scales.paper(figure_named(name), "imagenet", network) for name in ("table1", "table2"))
    assert {rounded_up(0.8**level) for level in table1.levels} == TABLE1[network]
    assert set(table1.levels) < set(table2.levels)
    curves = figure_named("table2").curves
    assert all(printed("table2", network, curve, 0.8**level) for curve in curves for level in table2.levels)
    assert max(table2.levels) <= table2.config.num_levels


def test_barriers_are_taken_where_the_paper_takes_them(scales):
    scale = scales.paper(figure_named("fig3"), "cifar100", "resnet50_cifar")
    assert rounded_up(0.8**scale.barrier_level) == 0.09 and scale.trials == 3 and scale.reduction is None


@pytest.mark.parametrize("name", ["small", "smoke"])
def test_a_reduction_is_named(scales, name: str):
    assert scales.SCALES[name](figure_named("fig3"), "digits", "resnet20").reduction


def test_single_settings_can_be_changed_and_are_named(scales):
    changes = scales.Changes(weight_decay=0.005, level_epochs=6, final_epochs=8)
    plan = scales.Subject("claims", scale="small", dataset="digits", changes=changes).plan
    own = scales.small(figure_named("claims"), "digits", "resnet20")
    config = plan.scale.config
    assert (config.optim.weight_decay, config.level_epochs, config.final.epochs) == (0.005, 6, 8)
    assert (config.optim.lr, config.warmup_epochs) == (own.config.optim.lr, own.config.warmup_epochs)
    assert plan.scale.variant == "-weight-decay-0.005-level-epochs-6-final-epochs-8"
    assert plan.scale.reduction.startswith(own.reduction)
    assert "weight decay 0.005 instead of 0.0005; level epochs 6 instead of 6" in plan.scale.reduction
    paper = scales.Subject("fig3", changes=scales.Changes(lr=0.01)).plan.scale
    assert paper.reduction == "lr 0.01 instead of 0.1" and scales.Changes().applied(paper) is paper
