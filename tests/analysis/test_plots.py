"""Plots: both files are written whole, and what they show is what was given."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import pytest
from matplotlib.image import imread

from harness.analysis.barrier import ALPHAS, BarrierCurve
from harness.analysis.plots import Series, plot_accuracy, plot_barriers

CURVE = BarrierCurve(ALPHAS, tuple(9.0 + i * (10 - i) for i in range(11)), 9.0, 9.0, "cumulative", 100, 100)
SERIES = [
    Series("retrain", "aws", {0.512: [9.0, 9.5], 0.134: [10.0]}),
    Series("signed_mask", "aws", {0.134: [10.0, 10.4]}),
    Series("random_signs", "aws", {0.134: [15.0, 16.0]}),
]


def check_files(paths: list[Path], stem: Path) -> str:
    """Both are there and readable; returns the SVG's comments, where matplotlib keeps each text it draws."""
    assert paths == [stem.with_suffix(".png"), stem.with_suffix(".svg")]
    assert imread(paths[0]).std() > 0.01  # not a blank page
    text = paths[1].read_text()
    ElementTree.fromstring(text)
    return text


def test_accuracy_names_every_series_and_density(tmp_path):
    text = check_files(
        plot_accuracy(SERIES, tmp_path / "accuracy", dense_error_percent=[8.8, 9.0], title="ResNet-8 on digits"),
        tmp_path / "accuracy",
    )
    words = (
        "retrain (aws)",
        "signed_mask (aws)",
        "random_signs (aws)",
        "dense",
        "0.512",
        "0.134",
        "ResNet-8 on digits",
    )
    assert [word for word in words if f"<!-- {word} -->" not in text] == []


def test_what_a_paper_prints_is_a_star_beside_ours(tmp_path):
    assert "printed in the paper" not in (plot_accuracy(SERIES, tmp_path / "without")[1]).read_text()
    ours = [Series("level", "gem_miner", {0.0372: [12.0], 0.0144: [20.0]}, {0.0372: 83.4, 0.0144: 77.89})]
    text = check_files(plot_accuracy(ours, tmp_path / "with"), tmp_path / "with")
    assert "<!-- printed in the paper -->" in text
    # within the range of ours, so that nothing else is drawn otherwise
    assert marks(tmp_path, {0.0372: 83.4, 0.0144: 81.0}) == marks(tmp_path, {0.0372: 83.4}) + 1


def marks(tmp_path: Path, printed: dict[float, float]) -> int:
    """How often the SVG draws a marker."""
    one = Series("level", "gem_miner", {0.0372: [12.0], 0.0144: [20.0]}, printed)
    return plot_accuracy([one], tmp_path / "marks")[1].read_text().count("<use ")


def test_accuracy_of_the_dense_network_alone(tmp_path):
    check_files(plot_accuracy([], tmp_path / "dense", dense_error_percent=[9.0]), tmp_path / "dense")


def test_barriers_are_in_the_legend(tmp_path):
    text = check_files(plot_barriers({"one | two": CURVE}, tmp_path / "barrier"), tmp_path / "barrier")
    assert "barrier 25.00 points" in text
    assert "one | two" in text


def test_equal_input_gives_an_equal_svg_and_leaves_matplotlib_as_it_was(tmp_path):
    before = dict(matplotlib.rcParams)
    first, second = (plot_barriers({"x": CURVE}, tmp_path / name)[1].read_bytes() for name in ("a", "b"))
    assert first == second
    assert dict(matplotlib.rcParams) == before


def test_nothing_to_draw_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no trainings"):
        plot_accuracy([], tmp_path / "x")
    with pytest.raises(ValueError, match="no barrier curves"):
        plot_barriers({}, tmp_path / "x")
