"""Plots: accuracy over density, error along a line, barriers side by side.

Each is written as PNG and as SVG. Colours are Okabe and Ito's, told apart by the colour-blind, and no two series differ
by colour alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.analysis.barrier import BarrierCurve
from harness.analysis.summary import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", "-.", ":")
_KIND_ORDER = ("retrain", "signed_mask", "mask")  # these keep their colour and marker in every plot
_SIZE_INCHES = (7.2, 4.6)
DENSITY = "density: kept share of the weights that may be pruned"
WEIGHTS = "kept weights, those of the classifier included"


@dataclass(frozen=True)
class Series:
    """Test errors of one kind of training of one method's tickets: density (0..1) → error percent of each trial."""

    kind: str
    method: str
    error_percent: Mapping[float, Sequence[float]]
    printed_accuracy_percent: Mapping[float, float] = field(default_factory=dict)
    """Density → a paper's printed accuracy, to stand beside ours."""

    @property
    def label(self) -> str:
        """As in the legend."""
        return f"{self.kind} ({self.method})"


def plot_accuracy(
    series: Sequence[Series],
    stem: Path,
    *,
    dense_error_percent: Sequence[float] = (),
    title: str = "Test accuracy over density",
    axis: str = DENSITY,
) -> list[Path]:
    """Draw mean accuracy ± sd over density, every trial as a dot, the dense network as a line; return the two files.

    `axis` names what stands in the place of the density where that is something else. A paper's printed accuracy is a
    star in the colour of its series.

    Colour and marker go by kind, line style and filling by method. Densities run from dense (left) to sparse, on a
    logarithmic scale. The files are `stem` with .png and .svg. Raises ValueError for nothing to draw.
    """
    if not series and not dense_error_percent:
        raise ValueError("no trainings to draw")
    kinds = [*_KIND_ORDER, *sorted({s.kind for s in series} - set(_KIND_ORDER))]
    methods = list(dict.fromkeys(s.method for s in series))
    with _figure(title) as (figure, axes):
        if dense_error_percent:
            _draw_dense(axes, Summary.of(100 - error for error in dense_error_percent))
        densities = sorted({density for one in series for density in one.error_percent})
        margin = _margin(densities)
        for index, one in enumerate(series):
            # trials of one density side by side, within the margin that the axis has
            shift = margin ** (0.8 * (1 - 2 * index / max(len(series) - 1, 1))) if len(series) > 1 else 1.0
            _draw_series(axes, one, kinds.index(one.kind), methods.index(one.method), shift)
        if any(one.printed_accuracy_percent for one in series):
            axes.plot([], [], "*", color="#555555", markersize=11, markerfacecolor="none", label="printed in the paper")
        _density_axis(axes, densities, margin, axis)
        axes.set_ylabel("test accuracy, %")
        _legend_beside(axes)
        return _save(figure, stem)


def plot_barriers(
    curves: Mapping[str, BarrierCurve], stem: Path, *, title: str = "Test error on the line between two networks"
) -> list[Path]:
    """Draw the error at every αa + (1 − α)b, one line for each curve, its barrier in the legend; return the two files.

    The files are `stem` with .png and .svg. Raises ValueError for no curves.
    """
    if not curves:
        raise ValueError("no barrier curves to draw")
    with _figure(title) as (figure, axes):
        for index, (name, curve) in enumerate(curves.items()):
            axes.plot(
                curve.alphas,
                curve.error_percent,
                color=_COLOURS[index % len(_COLOURS)],
                marker=_MARKERS[index % len(_MARKERS)],
                linestyle=_LINES[index % len(_LINES)],
                markersize=5,
                label=f"{_wrapped(name)}\nbarrier {curve.barrier:.2f} points",
            )
        axes.set_xlabel("α: 0 is the second network, 1 the first")
        axes.set_ylabel("test error, %")
        axes.set_ylim(bottom=0)
        _legend_beside(axes)
        return _save(figure, stem)


def plot_bars(
    groups: Mapping[str, Mapping[str, Sequence[float]]], stem: Path, *, title: str, epsilon: float | None = None
) -> list[Path]:
    """Draw the mean barrier ± sd of each group's members as bars, every trial as a dot, ε as a line; return the files.

    `groups` is question → compared networks → barrier of each trial, percentage points. The files are `stem` with .png
    and .svg. Raises ValueError for nothing to draw.
    """
    if not any(groups.values()):
        raise ValueError("no barriers to draw")
    names = list(dict.fromkeys(name for members in groups.values() for name in members))
    width = 0.8 / max(map(len, groups.values()))
    with _figure(title) as (figure, axes):
        for index, name in enumerate(names):
            trials = [list(members[name]) for members in groups.values() if name in members]
            left = [
                at + (list(members).index(name) - (len(members) - 1) / 2) * width
                for at, members in enumerate(groups.values())
                if name in members
            ]
            summaries = [Summary.of(values) for values in trials]
            colour = _COLOURS[index % len(_COLOURS)]
            heights = [summary.mean for summary in summaries]
            spread = [summary.sd or 0.0 for summary in summaries]
            axes.bar(left, heights, 0.9 * width, yerr=spread, color=colour, alpha=0.75, capsize=3, label=_wrapped(name))
            for at, values in zip(left, trials, strict=True):
                axes.plot([at] * len(values), values, "o", color="#000000", markersize=3)
        if epsilon is not None:
            axes.axhline(epsilon, color="#555555", linestyle=":", label=f"ε = {epsilon:.2f}")
        axes.set_xticks(range(len(groups)), [_wrapped(question, 24) for question in groups])
        axes.set_ylabel("error barrier, percentage points")
        axes.set_ylim(bottom=0)
        _legend_beside(axes)
        return _save(figure, stem)


@dataclass(frozen=True)
class Line:
    """Accuracy of one kind over the epochs of its final trainings."""

    label: str
    kind: str
    """Sets the marker; those of one kind share it."""
    accuracy_percent: Mapping[int, Sequence[float]]
    """Epochs → of each trial."""


@dataclass(frozen=True)
class Interval:
    """A difference in percentage points with its 95 % interval."""

    label: str
    mean: float
    interval: tuple[float, float] | None
    verdict: str = ""


def plot_study(
    lines: Sequence[Line], intervals: Sequence[Interval], stem: Path, *, title: str, margin: float
) -> list[Path]:
    """Draw accuracy over final epochs beside the differences of all hypotheses; return the two files.

    Left, the mean of each kind with every trial as a dot, on a logarithmic axis of epochs. Right, each difference with
    its interval; the grey band is "about equal", ± margin. The files are `stem` with .png and .svg.
    """
    with _figure(title, 2 if intervals else 1) as (figure, axes):
        figure.set_size_inches(12.5 if intervals else 7.2, max(4.8, 1.6 + 0.28 * len(intervals)))
        kinds = list(dict.fromkeys(line.kind for line in lines))
        for index, line in enumerate(lines):
            colour = "#555555" if line.kind == "dense" else _COLOURS[index % len(_COLOURS)]
            epochs = sorted(line.accuracy_percent)
            shift = 1.04 ** (index - (len(lines) - 1) / 2)  # trials of one length side by side
            means = [Summary.of(line.accuracy_percent[one]).mean for one in epochs]
            marker = _MARKERS[kinds.index(line.kind) % len(_MARKERS)]
            places = [one * shift for one in epochs]
            axes.plot(places, means, color=colour, marker=marker, linestyle=_LINES[index % 4], label=line.label)
            for one in epochs:
                values = list(line.accuracy_percent[one])
                axes.plot([one * shift] * len(values), values, ".", color=colour, alpha=0.4, markersize=4)
        axes.set_xscale("log")
        ticks = sorted({one for line in lines for one in line.accuracy_percent})
        axes.set_xticks(ticks, map(str, ticks))
        axes.minorticks_off()
        axes.set_xlabel("epochs of the final training")
        axes.set_ylabel("test accuracy, %")
        axes.legend(fontsize=8, loc="lower right")
        if intervals:
            _draw_intervals(figure.axes[1], intervals, margin)
        return _save(figure, stem)


def _draw_intervals(axes: Axes, intervals: Sequence[Interval], margin: float) -> None:
    rows = range(len(intervals))
    axes.axvspan(-margin, margin, color="#555555", alpha=0.12, linewidth=0)
    axes.axvline(0, color="#555555", linewidth=0.8)
    for row, one in zip(rows, intervals, strict=True):
        colour = _COLOURS[0] if one.verdict not in ("", "not shown") else "#777777"
        if one.interval is not None:
            axes.plot(one.interval, [row, row], "-", color=colour)
        axes.plot([one.mean], [row], "o", color=colour)
        axes.annotate(one.verdict, (1.01, row), xycoords=("axes fraction", "data"), fontsize=8, va="center")
    axes.set_yticks(rows, [one.label for one in intervals], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("difference of accuracy, percentage points")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_dense(axes: Axes, dense: Summary) -> None:
    axes.axhline(dense.mean, color="#555555", linestyle=":", label="dense")
    if dense.sd:
        axes.axhspan(dense.mean - dense.sd, dense.mean + dense.sd, color="#555555", alpha=0.12, linewidth=0)


def _draw_series(axes: Axes, one: Series, kind: int, method: int, shift: float) -> None:
    colour, marker = _COLOURS[kind % len(_COLOURS)], _MARKERS[kind % len(_MARKERS)]
    densities = sorted(one.error_percent, reverse=True)
    summaries = [Summary.of(100 - error for error in one.error_percent[density]) for density in densities]
    for density in densities:
        trials = one.error_percent[density]
        axes.plot(
            [density * shift] * len(trials), [100 - e for e in trials], ".", color=colour, alpha=0.5, markersize=4
        )
    axes.errorbar(
        [density * shift for density in densities],
        [summary.mean for summary in summaries],
        yerr=[summary.sd or 0.0 for summary in summaries],
        color=colour,
        marker=marker,
        markerfacecolor=colour if method == 0 else "white",
        linestyle=_LINES[method % len(_LINES)],
        markersize=7,
        capsize=3,
        label=one.label,
    )
    for density, accuracy in one.printed_accuracy_percent.items():
        axes.plot([density * shift], [accuracy], "*", color=colour, markersize=11, markerfacecolor="none", zorder=3)


def _margin(densities: Sequence[float]) -> float:
    """Return the factor by which the axis exceeds the rising densities on either side."""
    if len(densities) < 2:
        return 1.25
    return float((densities[-1] / densities[0]) ** min(0.06, 0.2 / len(densities)))


def _density_axis(axes: Axes, ticks: Sequence[float], margin: float, label: str) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator

    axes.set_xlabel(label)
    if not ticks:
        axes.set_xticks([])
        return
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,.0f}" if tick >= 1 else f"{tick:.3g}" for tick in ticks])
    if len(ticks) > 8:
        axes.tick_params(axis="x", labelrotation=60)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    room = margin**1.3  # the outermost trials keep clear of the axis
    axes.set_xlim(ticks[-1] * room, ticks[0] / room)  # dense on the left, as in the paper


@contextmanager
def _figure(title: str, columns: int = 1) -> Iterator[tuple[Figure, Axes]]:
    """Open a titled figure outside pyplot: no global state, no display, equal input gives an equal SVG.

    The axes are those of the first of its columns.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {"svg.hashsalt": "harness", "svg.fonttype": "path", "font.size": 10}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0, 0]
        axes.set_title(_wrapped(title, 70), fontsize=11, loc="left")
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        yield figure, axes


def _legend_beside(axes: Axes) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9, borderaxespad=0.0)


def _wrapped(text: str, width: int = 34) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))


def _save(figure: Figure, stem: Path) -> list[Path]:
    paths = [stem.with_name(stem.name + ending) for ending in (".png", ".svg")]
    figure.savefig(paths[0], dpi=150)
    figure.savefig(paths[1], metadata={"Date": None})
    return paths
