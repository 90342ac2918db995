"""Test plots: both files are complete and show the given numbers."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread

from harness.analysis import drawing, plots
from harness.analysis.barrier import ALPHAS, BarrierCurve
from harness.analysis.plots import (
    EpochSeries,
    Interval,
    LinePanel,
    LineSeries,
    Series,
    plot_accuracy,
    plot_barriers,
    plot_lines,
    plot_panels,
    plot_search,
    plot_study,
)

CURVE = BarrierCurve(ALPHAS, tuple(9.0 + i * (10 - i) for i in range(11)), 9.0, 9.0, "cumulative", 100, 100)
SERIES = [
    Series("retrain", "aws", {0.512: [9.0, 9.5], 0.134: [10.0]}),
    Series("signed_mask", "aws", {0.134: [10.0, 10.4]}),
    Series("random_signs", "aws", {0.134: [15.0, 16.0]}),
]


def check_files(paths: list[Path], stem: Path) -> str:
    """Check that PNG and SVG are readable, and return the SVG's text.

    Matplotlib writes each drawn text into a comment of the SVG.
    """
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


def test_published_numbers_are_drawn_as_stars(tmp_path):
    assert "printed in the paper" not in (plot_accuracy(SERIES, tmp_path / "without")[1]).read_text()
    ours = [Series("level", "gem_miner", {0.0372: [12.0], 0.0144: [20.0]}, {0.0372: 83.4, 0.0144: 77.89})]
    text = check_files(plot_accuracy(ours, tmp_path / "with"), tmp_path / "with")
    assert "<!-- printed in the paper -->" in text
    # inside the plotted range, so that the axes stay the same
    assert marks(tmp_path, {0.0372: 83.4, 0.0144: 81.0}) == marks(tmp_path, {0.0372: 83.4}) + 1


def marks(tmp_path: Path, printed: dict[float, float]) -> int:
    """Return the number of markers in the SVG."""
    one = Series("level", "gem_miner", {0.0372: [12.0], 0.0144: [20.0]}, printed)
    return plot_accuracy([one], tmp_path / "marks")[1].read_text().count("<use ")


def test_accuracy_of_the_dense_network_alone(tmp_path):
    check_files(plot_accuracy([], tmp_path / "dense", dense_error_percent=[9.0]), tmp_path / "dense")


def test_barriers_are_in_the_legend(tmp_path):
    text = check_files(plot_barriers({"one | two": CURVE}, tmp_path / "barrier"), tmp_path / "barrier")
    assert "25.00 above the line, barrier 25.00" in text
    assert "one | two" in text


def test_equal_input_gives_an_equal_svg_and_leaves_matplotlib_as_it_was(tmp_path):
    before = dict(matplotlib.rcParams)
    first, second = (plot_barriers({"x": CURVE}, tmp_path / name)[1].read_bytes() for name in ("a", "b"))
    assert first == second
    assert dict(matplotlib.rcParams) == before


def trials(*heights: float) -> list[BarrierCurve]:
    """Return one curve per trial with the given middle errors.

    The error is 4 % at α = 0 and 10 % at α = 1.
    """
    return [BarrierCurve((0.0, 0.5, 1.0), (4.0, height, 10.0), 10.0, 4.0, "cumulative", 100, 100) for height in heights]


STABILITY = LinePanel(
    "SGD-noise stability",
    ("u'", "u"),
    [
        LineSeries("retrain", "lrr", trials(7.0, 8.0, 12.0)),
        LineSeries("signed_mask", "lrr", trials(50.0, 61.0, 63.0)),
        LineSeries("signed_mask", "aws", trials(9.0)),
    ],
)
TICKETS = LinePanel("ticket and copy", ("copy", "ticket"), [LineSeries("level", "lrr", trials(7.0, 9.0))], False)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Return Matplotlib figures instead of saving them."""
    kept: list[Figure] = []
    monkeypatch.setattr(plots, "save", lambda figure, stem: kept.append(figure))
    return kept


@pytest.fixture
def drawn(figures: list[Figure], tmp_path: Path) -> Figure:
    """A figure of panels."""
    plot_panels(SERIES, [STABILITY, TICKETS], tmp_path / "x", dense_error_percent=[8.8], title="Figure 3")
    return figures[0]


def test_panels_show_mean_and_sd_over_trials_at_every_alpha(drawn: Figure):
    """Check the plotted curves against equation 1 of the paper.

    It subtracts the mean of both ends' errors, 7 %, from each error.
    """
    _, stability, tickets, *_ = drawn.axes
    means = [line for line in stability.lines if not line.get_label().startswith("_")]
    for one, line in zip(STABILITY.series, means, strict=True):
        errors = np.array([curve.error_percent for curve in one.curves]) - 7
        assert line.get_xydata() == pytest.approx(np.stack([(0.0, 0.5, 1.0), errors.mean(0)], 1))
    # a single trial has neither thin lines nor a shaded area
    assert len(stability.lines) == len(means) + 2 * 3
    areas = [area.get_paths()[0].vertices for area in stability.collections]
    assert len(areas) == 2
    for vertices, heights in zip(areas, ([0, 1, 5], [43, 54, 56]), strict=True):
        assert vertices[:, 1].max() == pytest.approx(np.mean(heights) + np.std(heights, ddof=1))
    # the panel of a ticket and its copy shows the error itself
    assert list(tickets.lines[0].get_ydata()) == pytest.approx([4, 8, 10])


def test_colour_is_the_kind_and_filling_the_method_in_every_panel(drawn: Figure):
    accuracy, stability, *_ = drawn.axes
    handles = dict(zip(*reversed(accuracy.get_legend_handles_labels()), strict=True))
    of_accuracy = handles["signed_mask (aws)"].lines[0]
    lines = {line.get_label(): line for line in stability.lines}
    of_stability = [lines[f"signed_mask ({method})"] for method in ("aws", "lrr")]
    assert {to_hex(line.get_color()) for line in (of_accuracy, *of_stability)} == {"#d55e00"}
    assert to_hex(lines["retrain (lrr)"].get_color()) == "#0072b2"
    assert [to_hex(line.get_markerfacecolor()) for line in (of_accuracy, *of_stability)] == [
        "#d55e00",
        "#d55e00",
        "#ffffff",
    ]


def test_a_figure_names_each_network_once(drawn: Figure):
    (legend,) = (axes.get_legend() for axes in drawn.axes if axes.get_legend()) if not drawn.legends else drawn.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert len(names) == len(set(names)) and {"dense", "signed_mask (aws)", "retrain (lrr)", "level (lrr)"} < set(names)


def test_the_ends_of_alpha_have_the_names_of_the_networks(figures: list[Figure], tmp_path: Path):
    plot_barriers({"x": CURVE}, tmp_path / "x", ends=("second run", "first run"))
    plot_lines([STABILITY], tmp_path / "y", title="lines")
    for figure, (zero, one) in zip(figures, (("second run", "first run"), ("u'", "u")), strict=True):
        labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
        assert (labels[0], labels[-1]) == (f"0\n{zero}", f"1\n{one}")
        assert figure.axes[0].get_xlabel() == "α"


def test_no_mark_is_above_100_percent(figures: list[Figure], tmp_path: Path):
    """Mean ± sd of 100, 100 and 97 % reaches 100.7 %."""
    near = {density: [0.0, 0.0, 3.0] for density in (0.5, 0.1)}
    plot_accuracy([Series("retrain", "aws", near)], tmp_path / "x", dense_error_percent=[0.0, 3.0])
    plot_accuracy([Series("retrain", "aws", {0.5: near[0.5]})], tmp_path / "y", dense_error_percent=[0.0, 3.0])
    lines, rows = (figure.axes[0] for figure in figures)
    assert (lines.get_ylim()[1], rows.get_xlim()[1]) == (100, 100)
    (bars,) = lines.containers
    assert max(end for bar in bars.lines[2][0].get_segments() for _, end in bar) == 100
    assert (
        max(end for container in rows.containers for bar in container.lines[2][0].get_segments() for end, _ in bar)
        == 100
    )
    for figure in figures:
        (legend,) = figure.legends
        assert drawing.CLIPPED in [text.get_text() for text in legend.get_texts()]


def test_one_density_is_a_dot_plot_with_every_trial(figures: list[Figure], tmp_path: Path):
    one = [Series(kind, "aws", {0.134: [10.0, 12.0]}) for kind in ("retrain", "mask")]
    plot_accuracy(one, tmp_path / "x", dense_error_percent=[8.0, 9.0], title="ResNet-8")
    (axes,) = figures[0].axes
    assert axes.get_title(loc="left") == "ResNet-8, density 0.134" and axes.get_xlabel() == drawing.ACCURACY
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dense", "retrain (aws)", "mask (aws)"]
    dots = [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "."]
    assert dots == [[92.0, 91.0], [90.0, 88.0], [90.0, 88.0]]
    assert figures[0].legends == []


def test_a_search_has_its_levels_above_and_its_final_trainings_below(tmp_path):
    levels = [Series("level", "aws", {1.0: [9.0], 0.512: [8.0], 0.134: [10.0]})]
    stem = tmp_path / "search"
    finals = [Series("retrain", "aws", {0.134: [10.0, 11.0]})]
    text = check_files(plot_search(levels, finals, stem, dense_error_percent=[8.0, 9.0], title="x"), stem)
    words = ("(a) levels of the search", "(b) final trainings, density 0.134", "level (aws)", "retrain (aws)")
    assert [word for word in words if f"<!-- {word} -->" not in text] == []


def test_a_study_has_its_errors_over_the_epochs_and_a_column_for_each_length(figures: list[Figure], tmp_path: Path):
    series = [EpochSeries("mask", "aws", {20: [70.0, 80.0], 100: [97.0, 100.0]})]
    dense = {20: [60.0], 100: [97.0], 176: [98.0]}
    shown = Interval("(b) mask > dense", 100, 2.0, (1.0, 3.0), True, "shown")
    barrier = Interval("(f) mask > retrain", 100, 50.0, (40.0, 60.0), True, "shown")
    plot_study(
        series,
        dense,
        [Interval("(b) mask > dense", 20, 15.0, None), shown],
        tmp_path / "x",
        title="x",
        margin=1,
        barriers=[barrier],
    )
    above, *columns, below = figures[0].axes

    # Errors over the epochs: both axes logarithmic, lines of means, and a dot for each trial.
    assert (above.get_xscale(), above.get_yscale(), above.get_xlabel()) == ("log", "log", "final epochs")
    assert [label.get_text() for label in above.get_xticklabels()] == ["20", "100", "176"]
    lines = {line.get_label(): line for line in above.lines if not str(line.get_label()).startswith("_")}
    assert {label: list(line.get_ydata()) for label, line in lines.items()} == {
        "dense": [40.0, 3.0, 2.0],
        "mask (aws)": [25.0, 1.5],
    }
    assert list(lines["dense"].get_xdata()) == pytest.approx([20, 100, 176], rel=0.02)
    dots = [list(line.get_ydata()) for line in above.lines if line.get_marker() == "."]
    assert dots == [[40.0], [3.0], [2.0], [30.0, 20.0], [3.0, 1.0]], "no error is drawn at half the least one"

    # Columns.
    assert [axes.get_title(loc="left") for axes in columns[:2]] == ["20 final epochs", "100 final epochs"]
    rows = [[label.get_text() for label in axes.get_yticklabels()] for axes in columns[:2]]
    assert rows == [["dense", "mask (aws)", ""], ["dense", "mask (aws)", "dense, 176 epochs"]]
    marks = [next(line for line in axes.lines if line.get_marker() == "o") for axes in (*columns[2:], below)]
    assert [(*mark.get_xdata(), to_hex(mark.get_markerfacecolor())) for mark in marks] == [
        (15.0, "#ffffff"),
        (2.0, "#0072b2"),
        (50.0, "#0072b2"),
    ]
    assert [label.get_text() for label in below.get_yticklabels()] == ["(f) mask > retrain"]
    assert "barriers above the line" in below.get_xlabel() and not below.patches, "no margin for barriers"


def test_every_series_of_a_figure_has_a_distinct_style():
    """Include kinds and methods without a fixed style."""
    kinds = ("retrain", "signed_mask", "mask", "signed_mask_norm", "random_signs", "level")
    series = [Series(kind, method, {}) for kind in kinds for method in ("lrr", "aws", "aws α=zero")]
    looks = drawing.Looks(series)
    assert len({tuple(looks.of(one).values()) for one in series}) == len(series)


def test_panels_of_a_figure_are_one_file_with_every_name(tmp_path):
    """Draw four panels, which leave room for the legend in their grid."""
    stem = tmp_path / "figure"
    paths = plot_panels(SERIES, [STABILITY, TICKETS, STABILITY], stem, title="Figure 3: ResNet-8")
    text = check_files(paths, stem)
    words = ("(a) test accuracy", "(b) SGD-noise stability", "random_signs (aws)", "signed_mask (lrr)", "0.134")
    assert [word for word in words if f"<!-- {word} -->" not in text] == []


def test_trials_on_different_grids_are_refused(tmp_path):
    mixed = LineSeries("retrain", "lrr", [CURVE, *trials(7.0)])
    with pytest.raises(ValueError, match=r"retrain \(lrr\): its trials are on 2 grids"):
        plot_panels(SERIES, [LinePanel("x", ("a", "b"), [mixed])], tmp_path / "x", title="x")


def test_nothing_to_draw_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no trainings"):
        plot_panels([], [STABILITY], tmp_path / "x", title="x")
    with pytest.raises(ValueError, match="no trainings"):
        plot_accuracy([], tmp_path / "x")
    with pytest.raises(ValueError, match="no barrier curves"):
        plot_barriers({}, tmp_path / "x")
    with pytest.raises(ValueError, match="no barrier curves"):
        plot_lines([], tmp_path / "x", title="x")
