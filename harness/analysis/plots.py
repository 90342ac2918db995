"""Plots: accuracy over density, error along a line, a figure's panels side by side.

Each is written as PNG and as SVG. Colours are Okabe and Ito's, told apart by the colour-blind, and no two series differ
by colour alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.analysis.barrier import BarrierCurve
from harness.analysis.summary import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _GREEN, _ORANGE, _RED, _PURPLE = "#0072B2", "#009E73", "#E69F00", "#D55E00", "#CC79A7"
_FURTHER = ("#56B4E9", "#000000", "#8B5A2B", "#B8A500")
_COLOURS = (_BLUE, _RED, _GREEN, _PURPLE, _ORANGE, *_FURTHER[:2])
_OF_THE_PAPER = {
    ("retrain", "lrr"): _BLUE,
    ("retrain", "aws"): _GREEN,
    ("signed_mask", "lrr"): _ORANGE,
    ("signed_mask", "aws"): _RED,
    ("mask", "lrr"): _PURPLE,
    ("mask", "aws"): _PURPLE,
    # a ticket before it is trained any further has the colour of its solution
    ("level", "lrr"): _BLUE,
    ("level", "aws"): _GREEN,
}
"""(kind, method) → its colour in the paper's Figures 2, 3 and 6. Kept norm parameters are red or green there;
here these are AWS's."""
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", "-.", ":")
_KIND_ORDER = ("retrain", "signed_mask", "mask")  # these keep their marker in every plot
_SIZE_INCHES = (7.2, 4.6)
_PANEL_INCHES = (3.9, 3.4)
_COLUMNS = 3
SHORT_DENSITY = "density (kept share of prunable weights)"
DENSITY = "density: kept share of the weights that may be pruned"
WEIGHTS = "kept weights, those of the classifier included"


@dataclass(frozen=True)
class _OfTickets:
    """One kind of training of one method's tickets: it looks the same in every figure."""

    kind: str
    method: str

    @property
    def label(self) -> str:
        """As in the legend."""
        return f"{self.kind} ({self.method})"


@dataclass(frozen=True)
class Series(_OfTickets):
    """Test errors over density (0..1): error percent of each trial."""

    error_percent: Mapping[float, Sequence[float]]
    printed_accuracy_percent: Mapping[float, float] = field(default_factory=dict)
    """Density → a paper's printed accuracy, to stand beside ours."""


@dataclass(frozen=True)
class LineSeries(_OfTickets):
    """Error along the line between two networks: a curve for each trial."""

    curves: Sequence[BarrierCurve]
    """All on one grid of α."""


@dataclass(frozen=True)
class EpochSeries(_OfTickets):
    """Accuracy over the epochs of the final trainings: percent of each trial."""

    accuracy_percent: Mapping[int, Sequence[float]]


@dataclass(frozen=True)
class LinePanel:
    """One question about two networks, as one panel of a figure."""

    title: str
    ends: tuple[str, str]
    """The networks at α = 0 and at α = 1, in words."""
    series: Sequence[LineSeries]
    as_barrier: bool = True
    """Draw the paper's E_α, the error less the mean of the ends' errors; otherwise the test error itself."""


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

    Colours are the paper's where it has one; markers go by kind, line style and filling by method. Densities run from
    dense (left) to sparse, on a logarithmic scale. The files are `stem` with .png and .svg. Raises ValueError for
    nothing to draw.
    """
    _check_any(series, dense_error_percent)
    with _figure(_SIZE_INCHES) as (figure, (axes,)):
        _set_title(axes, title)
        _draw_accuracy(axes, series, _Looks(series), dense_error_percent, upright=8, axis=axis)
        _legend_beside(axes)
        return _save(figure, stem)


def plot_panels(
    series: Sequence[Series],
    panels: Sequence[LinePanel],
    stem: Path,
    *,
    dense_error_percent: Sequence[float] = (),
    title: str,
) -> list[Path]:
    """Draw accuracy over density as panel a, and beside it a panel for each question; return the two files.

    Panel a is as `plot_accuracy` has it. In the others points are means over trials, and shaded areas their standard
    deviation, as in the paper's Figures 2, 3 and 6. One network looks the same in all panels. The files are `stem` with
    .png and .svg. Raises ValueError for nothing to draw, and for trials on different grids of α.
    """
    _check_any(series, dense_error_percent)
    number = 1 + len(panels)
    columns = min(number, _COLUMNS)
    rows = -(-number // columns)
    looks = _Looks([*series, *(one for panel in panels for one in panel.series)])
    width, height = _PANEL_INCHES
    with _figure((columns * width, rows * height + 0.9), rows, columns) as (figure, all_axes):
        figure.suptitle(_wrapped(title, 45 * columns), x=0.01, ha="left", fontsize=11)
        _set_title(all_axes[0], "(a) test accuracy")
        _draw_accuracy(all_axes[0], series, looks, dense_error_percent, upright=5, axis=SHORT_DENSITY)
        for letter, axes, panel in zip("bcdefgh", all_axes[1:], panels, strict=False):
            _set_title(axes, f"({letter}) {panel.title}")
            _draw_panel(axes, panel, looks)
        _legend_of_all(figure, all_axes, number)
        return _save(figure, stem)


def _check_any(series: Sequence[Series], dense_error_percent: Sequence[float]) -> None:
    if not series and not dense_error_percent:
        raise ValueError("no trainings to draw")


class _Looks:
    """Colour, marker, line and filling of each series of one figure, the same in all its panels."""

    def __init__(self, series: Iterable[_OfTickets]) -> None:
        pairs = dict.fromkeys((one.kind, one.method) for one in series)
        self.kinds = [*_KIND_ORDER, *sorted({kind for kind, _ in pairs} - set(_KIND_ORDER))]
        self.methods = list(dict.fromkeys(method for _, method in pairs))
        self.others = [pair for pair in pairs if pair not in _OF_THE_PAPER]

    def of(self, one: _OfTickets) -> dict[str, Any]:
        """Return matplotlib's arguments."""
        pair = one.kind, one.method
        method = self.methods.index(one.method)
        colour = _OF_THE_PAPER.get(pair) or _FURTHER[self.others.index(pair) % len(_FURTHER)]
        return {
            "color": colour,
            "marker": _MARKERS[self.kinds.index(one.kind) % len(_MARKERS)],
            "markerfacecolor": colour if method == 0 else "white",
            "linestyle": _LINES[method % len(_LINES)],
        }


def _draw_accuracy(
    axes: Axes,
    series: Sequence[Series],
    looks: _Looks,
    dense_error_percent: Sequence[float],
    *,
    upright: int,
    axis: str = DENSITY,
) -> None:
    """Draw accuracy over density; more than `upright` densities are written at an angle."""
    if dense_error_percent:
        _draw_dense(axes, Summary.of(100 - error for error in dense_error_percent))
    densities = sorted({density for one in series for density in one.error_percent})
    margin = _margin(densities)
    for index, one in enumerate(series):
        # trials of one density side by side, within the margin that the axis has
        shift = margin ** (0.8 * (1 - 2 * index / max(len(series) - 1, 1))) if len(series) > 1 else 1.0
        _draw_series(axes, one, looks.of(one), shift)
    if any(one.printed_accuracy_percent for one in series):
        axes.plot([], [], "*", color="#555555", markersize=11, markerfacecolor="none", label="printed in the paper")
    _density_axis(axes, densities, margin, upright, axis)
    axes.set_ylabel("test accuracy, %")


def _draw_panel(axes: Axes, panel: LinePanel, looks: _Looks) -> None:
    for one in panel.series:
        grids = {curve.alphas for curve in one.curves}
        if len(grids) != 1:
            raise ValueError(f"{one.label}: its trials are on {len(grids)} grids of α; draw those of one grid")
        (alphas,) = grids
        trials = [curve.barrier_by_alpha if panel.as_barrier else curve.error_percent for curve in one.curves]
        points = [Summary.of(errors) for errors in zip(*trials, strict=True)]
        look = looks.of(one)
        axes.plot(alphas, [point.mean for point in points], markersize=5, label=one.label, **look)
        if points[0].sd is not None:
            low, high = ([point.mean + side * (point.sd or 0.0) for point in points] for side in (-1, 1))
            axes.fill_between(alphas, low, high, color=look["color"], alpha=0.15, linewidth=0)
    axes.set_xlabel("α: 0 is {}, 1 {}".format(*panel.ends))
    axes.set_ylabel("error barrier $E_α$, points" if panel.as_barrier else "test error, %")
    if not panel.as_barrier:
        axes.set_ylim(bottom=0)


def _legend_of_all(figure: Figure, all_axes: Sequence[Axes], number: int) -> None:
    """Name each series of a figure once: in the first free place of its grid, else below the panels."""
    found: dict[str, Any] = {}
    for axes in all_axes[:number]:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    free = all_axes[number:]
    for axes in free:
        axes.set_axis_off()
    looks: dict[str, Any] = {"frameon": False, "fontsize": 9}
    if free:
        free[0].legend(found.values(), found.keys(), loc="center left", **looks)
    else:
        figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=min(len(found), 4), **looks)


def plot_barriers(
    curves: Mapping[str, BarrierCurve], stem: Path, *, title: str = "Test error on the line between two networks"
) -> list[Path]:
    """Draw the error at every αa + (1 − α)b, a line for each curve, its numbers in the legend; return the two files.

    The files are `stem` with .png and .svg. Raises ValueError for no curves.
    """
    if not curves:
        raise ValueError("no barrier curves to draw")
    with _figure(_SIZE_INCHES) as (figure, (axes,)):
        _set_title(axes, title)
        for index, (name, curve) in enumerate(curves.items()):
            axes.plot(
                curve.alphas,
                curve.error_percent,
                color=_COLOURS[index % len(_COLOURS)],
                marker=_MARKERS[index % len(_MARKERS)],
                linestyle=_LINES[index % len(_LINES)],
                markersize=5,
                label=f"{_wrapped(name)}\n{curve.barrier_above_line:.2f} above the line, barrier {curve.barrier:.2f}",
            )
        axes.set_xlabel("α: 0 is the second network, 1 the first")
        axes.set_ylabel("test error, %")
        axes.set_ylim(bottom=0)
        _legend_beside(axes)
        return _save(figure, stem)


@dataclass(frozen=True)
class Interval:
    """A difference in percentage points with its 95 % interval."""

    label: str
    mean: float
    interval: tuple[float, float] | None
    verdict: str = ""


def plot_study(
    series: Sequence[EpochSeries],
    dense_percent: Mapping[int, Sequence[float]],
    intervals: Sequence[Interval],
    stem: Path,
    *,
    title: str,
    margin: float,
) -> list[Path]:
    """Draw accuracy over final epochs beside the differences of all hypotheses; return the two files.

    Left, the mean of each kind and of the dense network with every trial as a dot, on a logarithmic axis of epochs.
    Right, each difference with its interval; the grey band is "about equal", ± margin. The files are `stem` with .png
    and .svg.
    """
    looks = _Looks(series)
    lines: list[tuple[str, Mapping[int, Sequence[float]], dict[str, Any]]] = [
        ("dense", dense_percent, {"color": "#555555", "linestyle": ":", "marker": "."}),
        *((one.label, one.accuracy_percent, looks.of(one)) for one in series),
    ]
    size_inches = (15.0 if intervals else 7.2, max(4.8, 1.6 + 0.34 * len(intervals)))
    with _figure(size_inches, columns=2 if intervals else 1) as (figure, all_axes):
        axes = all_axes[0]
        _set_title(axes, title)
        for index, (label, accuracy_percent, look) in enumerate(lines):
            epochs = sorted(accuracy_percent)
            shift = 1.04 ** (index - (len(lines) - 1) / 2)  # trials of one length side by side
            means = [Summary.of(accuracy_percent[one]).mean for one in epochs]
            axes.plot([one * shift for one in epochs], means, label=label, **look)
            for one in epochs:
                values = list(accuracy_percent[one])
                axes.plot([one * shift] * len(values), values, ".", color=look["color"], alpha=0.4, markersize=4)
        axes.set_xscale("log")
        ticks = sorted({one for _, accuracy_percent, _ in lines for one in accuracy_percent})
        axes.set_xticks(ticks, map(str, ticks))
        axes.minorticks_off()
        axes.set_xlabel("epochs of the final training")
        axes.set_ylabel("test accuracy, %")
        axes.legend(fontsize=8, loc="lower right")
        if intervals:
            _draw_intervals(all_axes[1], intervals, margin)
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
    axes.set_yticks(rows, [one.label for one in intervals], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("difference of accuracy, percentage points")
    axes.grid(visible=False)


def _draw_dense(axes: Axes, dense: Summary) -> None:
    axes.axhline(dense.mean, color="#555555", linestyle=":", label="dense")
    if dense.sd:
        axes.axhspan(dense.mean - dense.sd, dense.mean + dense.sd, color="#555555", alpha=0.12, linewidth=0)


def _draw_series(axes: Axes, one: Series, look: Mapping[str, Any], shift: float) -> None:
    colour = look["color"]
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
        markersize=6,
        capsize=3,
        label=one.label,
        **look,
    )
    for density, accuracy in one.printed_accuracy_percent.items():
        axes.plot([density * shift], [accuracy], "*", color=colour, markersize=11, markerfacecolor="none", zorder=3)


def _margin(densities: Sequence[float]) -> float:
    """Return the factor by which the axis exceeds the rising densities on either side."""
    if len(densities) < 2:
        return 1.25
    return float((densities[-1] / densities[0]) ** min(0.06, 0.2 / len(densities)))


def _density_axis(axes: Axes, ticks: Sequence[float], margin: float, upright: int, label: str) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator

    axes.set_xlabel(label)
    if not ticks:
        axes.set_xticks([])
        return
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,.0f}" if tick >= 1 else f"{tick:.3g}" for tick in ticks])
    if len(ticks) > upright:
        axes.tick_params(axis="x", labelrotation=60)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    room = margin**1.3  # the outermost trials keep clear of the axis
    axes.set_xlim(ticks[-1] * room, ticks[0] / room)  # dense on the left, as in the paper


@contextmanager
def _figure(size_inches: tuple[float, float], rows: int = 1, columns: int = 1) -> Iterator[tuple[Figure, list[Axes]]]:
    """Open a figure with a grid of axes outside pyplot: no global state, no display, equal input gives an equal SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {"svg.hashsalt": "harness", "svg.fonttype": "path", "font.size": 10}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size_inches, layout="constrained")
        all_axes = [figure.add_subplot(rows, columns, place) for place in range(1, rows * columns + 1)]
        for axes in all_axes:
            axes.grid(axis="y", color="#dddddd", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_axisbelow(True)
        yield figure, all_axes


def _set_title(axes: Axes, title: str) -> None:
    axes.set_title(_wrapped(title, 70), fontsize=11, loc="left")


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
