"""The numbers that the paper prints, against its own text."""

from __future__ import annotations

import pytest

from harness.reproduction.figure import FIGURES, Curve
from harness.reproduction.paper import Printed, printed, rounded_up


@pytest.mark.parametrize(
    ("level", "shown"), [(4, 0.41), (5, 0.33), (6, 0.27), (7, 0.21), (8, 0.17), (9, 0.14), (10, 0.11)]
)
def test_densities_are_rounded_up_as_the_paper_does(level: int, shown: float):
    assert rounded_up(0.8**level) == shown


def test_by_hand():
    assert printed("table2", "resnet50", None, 1.0) == Printed(75.26, 0.27)
    assert printed("table2", "resnet50", Curve("aws", "signed_mask"), 0.8**6) == Printed(74.65, 0.20)
    assert printed("table1", "mlp_mixer", Curve("lrr", "retrain"), 0.8**10) == Printed(58.61, 0.23)


def test_every_point_of_table_two_has_a_number():
    levels = {"resnet50": (6, 7, 8, 9), "mobilenet_v2": (4, 5, 6, 7), "mlp_mixer": (7, 8, 9, 10)}
    points = [(n, c, 0.8**t) for n in levels for t in levels[n] for c in FIGURES["table2"].curves]
    assert len(points) == 48 and all(printed("table2", *point) for point in points)


def test_figures_print_none():
    assert printed("fig3", "resnet50", Curve("aws", "signed_mask"), 0.8**6) is None
