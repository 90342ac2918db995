"""Test the transcribed numbers of the paper."""

from __future__ import annotations

import pytest

from harness.reproduction.figure import FIGURES, Curve
from harness.reproduction.paper import Printed, printed, prints_numbers, rounded_up


@pytest.mark.parametrize(
    ("level", "shown"), [(4, 0.41), (5, 0.33), (6, 0.27), (7, 0.21), (8, 0.17), (9, 0.14), (10, 0.11)]
)
def test_densities_are_rounded_up_as_the_paper_does(level: int, shown: float):
    assert rounded_up(0.8**level) == shown


def test_by_hand():
    assert printed("table2", "imagenet", "resnet50", None, 1.0) == Printed(75.26, 0.27)
    assert printed("table2", "imagenet", "resnet50", Curve("aws", "signed_mask"), 0.8**6) == Printed(74.65, 0.20)
    assert printed("table1", "imagenet", "mlp_mixer", Curve("lrr", "retrain"), 0.8**10) == Printed(58.61, 0.23)
    for density, accuracy in ((0.0372, 83.4), (0.0144, 77.89), (0.0059, 66.15)):
        assert printed("gem_miner", "cifar10", "resnet20", Curve("gem_miner", "level"), density) == Printed(accuracy)


def test_every_point_of_table_two_has_a_number():
    levels = {"resnet50": (6, 7, 8, 9), "mobilenet_v2": (4, 5, 6, 7), "mlp_mixer": (7, 8, 9, 10)}
    points = [(n, c, 0.8**t) for n in levels for t in levels[n] for c in FIGURES["table2"].curves]
    assert len(points) == 48 and all(printed("table2", "imagenet", *point) for point in points)


def test_figures_print_none():
    assert printed("fig3", "imagenet", "resnet50", Curve("aws", "signed_mask"), 0.8**6) is None
    assert prints_numbers("table1") and prints_numbers("gem_miner") and not prints_numbers("fig3")


@pytest.mark.parametrize(
    ("figure", "data", "network", "curve", "density"),
    [
        ("table2", "digits", "resnet50", Curve("aws", "signed_mask"), 0.8**6),
        ("table2", "imagenet", "resnet50", Curve("aws", "signed_mask"), 0.8**2),
        ("gem_miner", "digits", "resnet20", Curve("gem_miner", "level"), 0.0144),
        ("gem_miner", "cifar10", "resnet32", Curve("gem_miner", "level"), 0.0144),
        ("gem_miner", "cifar10", "resnet20", None, 0.0144),
        ("gem_miner", "cifar10", "resnet20", Curve("gem_miner", "level"), 0.5),
    ],
)
def test_settings_that_the_paper_does_not_print_have_no_number(figure, data, network, curve, density):
    assert printed(figure, data, network, curve, density) is None
