"""Plots: accuracy by density, accuracy by epochs, and error on the line between two networks.

Every function writes a PNG and an SVG. All plots share the palette and the axis names of `harness.analysis.drawing`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.analysis.barrier import BarrierCurve
from harness.analysis.drawing import (
    ACCURACY,
    BARRIER,
    DENSE_LOOK,
    DENSITY,
    ERROR,
    GREY,
    TRIAL_DOTS,
    WEIGHTS,
    DotRow,
    Looks,
    alpha_axis,
    density_axis,
    draw_rows,
    draw_star,
    is_clipped,
    label_clipped,
    label_star,
    limits,
    new_figure,
    save,
    set_title,
    tick_text,
    within_percent,
    wrapped,
)
from harness.analysis.summary import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "DENSITY",
    "WEIGHTS",
    "EpochSeries",
    "Interval",
    "LinePanel",
    "LineSeries",
    "Series",
    "plot_accuracy",
    "plot_barriers",
    "plot_lines",
    "plot_panels",
    "plot_search",
    "plot_study",
]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", "-.", ":")
_WIDTH_INCHES = 9.2
"""Text of 10 points stays legible at the width of a page on GitHub."""
_PANEL_HEIGHT_INCHES = 3.9
_COLUMNS = 2


@dataclass(frozen=True)
class _OfTickets:
    """One kind of training of one method's tickets; it looks the same in every figure."""

    kind: str
    method: str

    @property
    def label(self) -> str:
        """Its name in a legend."""
        return f"{self.kind} ({self.method})"


@dataclass(frozen=True)
class Series(_OfTickets):
    """Test errors by density (0..1): percent of each trial."""

    error_percent: Mapping[float, Sequence[float]]
    printed_accuracy_percent: Mapping[float, float] = field(default_factory=dict)
    """Density → accuracy that a paper prints."""


@dataclass(frozen=True)
class LineSeries(_OfTickets):
    """Error on the line between two networks: one curve for each trial."""

    curves: Sequence[BarrierCurve]
    """All on one grid of α."""


@dataclass(frozen=True)
class EpochSeries(_OfTickets):
    """Test accuracy by length of the final trainings: epochs → percent of each trial."""

    accuracy_percent: Mapping[int, Sequence[float]]


@dataclass(frozen=True)
class LinePanel:
    """One question about two networks, as one panel of a figure."""

    title: str
    ends: tuple[str, str]
    """Names of the networks at α = 0 and at α = 1."""
    series: Sequence[LineSeries]
    as_barrier: bool = True
    """Draw the paper's E_α: the error minus the mean error of the two ends. If false, draw the test error."""


@dataclass(frozen=True)
class Interval:
    """A difference of test accuracy or of barriers, percentage points, with its 95 % interval."""

    label: str
    epochs: int
    """Epochs of the final trainings that it compares."""
    mean: float
    interval: tuple[float, float] | None
    shown: bool = False
    verdict: str = ""
    """In words; empty for a hypothesis that is not judged."""


def plot_accuracy(
    series: Sequence[Series],
    stem: Path,
    *,
    dense_error_percent: Sequence[float] = (),
    title: str = "Test accuracy",
    axis: str = DENSITY,
) -> list[Path]:
    """Draw mean accuracy ± sd with every trial, by density; return both files.

    Series at a single density become the rows of a dot plot. Several densities become an axis from dense (left) to
    sparse, on a logarithmic scale. A star marks an accuracy that a paper prints.

    Args:
        series: One line or row each.
        stem: Path of the files without .png and .svg.
        dense_error_percent: Test error of each trial of the dense network.
        title: Above the plot.
        axis: Name of the horizontal axis of several densities; `WEIGHTS` for numbers of weights.

    Raises:
        ValueError: There is nothing to draw.
    """
    # Phase: the height depends on rows or axis.
    _check_any(series, dense_error_percent)
    densities = _densities(series)
    rows = len(series) + bool(dense_error_percent)
    height = 1.5 + 0.42 * rows if len(densities) <= 1 else 5.2
    with new_figure((_WIDTH_INCHES, height)) as (figure, (axes,)):
        set_title(axes, title + _at_density(densities, axis), 86)
        _draw_accuracy(axes, series, Looks(series), dense_error_percent, upright=10, axis=axis)
        _legend_below(figure, [axes], without_rows=len(densities) <= 1)
        return save(figure, stem)


def plot_search(
    levels: Sequence[Series],
    finals: Sequence[Series],
    stem: Path,
    *,
    dense_error_percent: Sequence[float] = (),
    title: str,
) -> list[Path]:
    """Draw the levels of searches by density, and below them the final trainings at one density; return both files.

    Raises ValueError if there is nothing to draw.
    """
    _check_any(levels, dense_error_percent)
    looks = Looks([*levels, *finals])
    below = 1.2 + 0.32 * (len(finals) + 1)
    size_inches = (_WIDTH_INCHES, _PANEL_HEIGHT_INCHES + 0.6 + below)
    with new_figure(size_inches, rows=2, heights=(_PANEL_HEIGHT_INCHES, below)) as (figure, (above, rows)):
        figure.suptitle(wrapped(title, 104), x=0.01, ha="left", fontsize=11)
        set_title(above, "(a) levels of the search")
        _draw_lines_by_density(above, levels, looks, dense_error_percent, upright=10, axis=DENSITY)
        above.legend(loc="best", fontsize=9)
        set_title(rows, f"(b) final trainings{_at_density(_densities(finals), DENSITY)}")
        _draw_accuracy(rows, finals, looks, dense_error_percent, upright=10)
        return save(figure, stem)


def plot_panels(
    series: Sequence[Series],
    panels: Sequence[LinePanel],
    stem: Path,
    *,
    dense_error_percent: Sequence[float] = (),
    title: str,
) -> list[Path]:
    """Draw accuracy as panel (a), and one further panel for each question; return both files.

    Panel (a) is that of `plot_accuracy`. The others show means over trials, standard deviations as shaded bands, and
    single trials as thin lines. A network looks the same in all panels.

    Raises:
        ValueError: There is nothing to draw, or the trials of a series have different grids of α.
    """
    _check_any(series, dense_error_percent)
    looks = Looks([*series, *(one for panel in panels for one in panel.series)])
    number = 1 + len(panels)
    rows = -(-number // _COLUMNS)
    size_inches = (_WIDTH_INCHES, rows * _PANEL_HEIGHT_INCHES + 1.0)
    with new_figure(size_inches, rows, min(number, _COLUMNS)) as (figure, all_axes):
        # Phase: panel (a).
        figure.suptitle(wrapped(title, 104), x=0.01, ha="left", fontsize=11)
        set_title(all_axes[0], f"(a) test accuracy{_at_density(_densities(series), DENSITY)}", 44)
        _draw_accuracy(all_axes[0], series, looks, dense_error_percent, upright=6)

        # Phase: one panel for each question, then one legend for all.
        for letter, axes, panel in zip("bcdefgh", all_axes[1:], panels, strict=False):
            set_title(axes, f"({letter}) {panel.title}", 44)
            _draw_panel(axes, panel, looks)
        _legend_of_all(figure, all_axes, number)
        return save(figure, stem)


def plot_lines(panels: Sequence[LinePanel], stem: Path, *, title: str) -> list[Path]:
    """Draw one panel for each question about two networks, as `plot_panels` does; return both files.

    Raises ValueError if there is no panel, or if the trials of a series have different grids of α.
    """
    if not panels:
        raise ValueError("no barrier curves to draw")
    looks = Looks([one for panel in panels for one in panel.series])
    rows = -(-len(panels) // _COLUMNS)
    size_inches = (_WIDTH_INCHES, rows * _PANEL_HEIGHT_INCHES + 1.0)
    with new_figure(size_inches, rows, min(len(panels), _COLUMNS)) as (figure, all_axes):
        figure.suptitle(wrapped(title, 104), x=0.01, ha="left", fontsize=11)
        for letter, axes, panel in zip("abcdefgh", all_axes, panels, strict=False):
            set_title(axes, f"({letter}) {panel.title}", 44)
            _draw_panel(axes, panel, looks)
        _legend_of_all(figure, all_axes, len(panels))
        return save(figure, stem)


def plot_barriers(
    curves: Mapping[str, BarrierCurve],
    stem: Path,
    *,
    ends: tuple[str, str] = ("second network", "first network"),
    title: str = "Test error on the line between two networks",
) -> list[Path]:
    """Draw the test error at every αa + (1 − α)b, with the barriers in the legend; return both files.

    A thin grey line joins the two ends of each curve. The barrier above the line is measured from there.

    Args:
        curves: Name → curve.
        stem: Path of the files without .png and .svg.
        ends: Names of b (α = 0) and a (α = 1).
        title: Above the plot.

    Raises:
        ValueError: There is no curve.
    """
    if not curves:
        raise ValueError("no barrier curves to draw")
    # Phase: each curve, over the straight line between its ends; then the axes.
    with new_figure((_WIDTH_INCHES, 4.8 + 0.45 * len(curves))) as (figure, (axes,)):
        set_title(axes, title)
        for index, (name, curve) in enumerate(curves.items()):
            straight = (curve.error_b_percent, curve.error_a_percent)
            numbers = f"{curve.barrier_above_line:.2f} above the line, barrier {curve.barrier:.2f}"
            axes.plot((0, 1), straight, color=GREY, linewidth=0.8, linestyle=":")
            axes.plot(
                curve.alphas,
                curve.error_percent,
                color=_COLOURS[index % len(_COLOURS)],
                marker=_MARKERS[index % len(_MARKERS)],
                linestyle=_LINES[index % len(_LINES)],
                markersize=6,
                label=f"{wrapped(name, 76)}\n{numbers}",
            )
        alpha_axis(axes, ends, 46)
        axes.set_ylabel(ERROR)
        axes.set_ylim(bottom=0)
        _legend_below(figure, [axes], columns=1 if len(curves) == 1 else 2)
        return save(figure, stem)


def plot_study(
    series: Sequence[EpochSeries],
    dense_percent: Mapping[int, Sequence[float]],
    intervals: Sequence[Interval],
    stem: Path,
    *,
    title: str,
    margin: float,
    barriers: Sequence[Interval] = (),
) -> list[Path]:
    """Draw the error over the epochs, accuracy and its differences for each length, and barriers; return both files.

    On top, mean test errors over the final epochs, so that speed and end are told apart. Then one column for each
    length: a dot plot of all kinds and of the dense network, and each difference with its 95 % interval and a grey band
    of ± margin. At the bottom, differences of barriers. A filled dot is a shown hypothesis, a hollow one is not shown
    or not judged.

    Args:
        series: The kinds; all have the same lengths.
        dense_percent: Epochs → accuracy of each trial of the dense network. Other lengths than those of the kinds
            become rows of the last column.
        intervals: The differences of accuracy; none leaves their part out.
        stem: Path of the files without .png and .svg.
        title: Above the plot.
        margin: Percentage points within which two kinds are about equal.
        barriers: The differences of barriers, each with its own label; none leaves their part out.
    """
    # Phase: the parts that are there, and their heights.
    lengths = sorted({epochs for one in series for epochs in one.accuracy_percent} or dense_percent)
    further = sorted(set(dense_percent) - set(lengths))
    labels = list(dict.fromkeys(one.label for one in intervals))
    heights = [4.0, 1.1 + 0.36 * (1 + len(series) + len(further))]
    heights += [_height_inches(labels)] if labels else []
    heights += [_height_inches([one.label for one in barriers])] if barriers else []
    wide = {0, len(heights) - 1} if barriers else {0}
    size_inches = (10.0, sum(heights) + 0.9)
    with new_figure(size_inches, len(heights), len(lengths), heights, wide) as (figure, (over_epochs, *all_axes)):
        figure.suptitle(wrapped(title, 110), x=0.01, ha="left", fontsize=11)
        _draw_over_epochs(over_epochs, series, dense_percent)

        # Phase: accuracy, kinds in rows.
        for axes, epochs in zip(all_axes, lengths, strict=False):
            set_title(axes, f"{epochs} final epochs")
            rows = _rows_of_study(series, dense_percent, epochs, further if epochs == lengths[-1] else [])
            blank = [DotRow("", (), DENSE_LOOK)] * (1 + len(series) + len(further) - len(rows))
            draw_rows(axes, [*rows, *blank], dense_percent=dense_percent.get(epochs, ()))

        # Phase: differences, hypotheses in rows.
        if barriers:
            axes = all_axes.pop()
            _draw_intervals(axes, [one.label for one in barriers], barriers)
            axes.set_xlabel("difference of barriers above the line, or of errors with ψ_init (points)")
        for axes, epochs in zip(all_axes[len(lengths) :], lengths, strict=False):
            _draw_intervals(axes, labels, [one for one in intervals if one.epochs == epochs], margin)
            axes.set_xlabel("difference of test accuracy (points)")

        # Phase: columns share the names of their rows, except for dense networks of the last one alone.
        for place, axes in enumerate(all_axes):
            if place % len(lengths) and not (further and place == len(lengths) - 1):
                axes.tick_params(left=False, labelleft=False)
        return save(figure, stem)


def _draw_over_epochs(axes: Axes, series: Sequence[EpochSeries], dense_percent: Mapping[int, Sequence[float]]) -> None:
    """Draw mean test errors over the final epochs, with every trial, both axes logarithmic."""
    from matplotlib.ticker import NullFormatter, NullLocator

    looks = Looks(series)
    lines = [
        ("dense", dense_percent, DENSE_LOOK),
        *((one.label, one.accuracy_percent, looks.of(one)) for one in series),
    ]
    lengths = sorted({epochs for _, found, _ in lines for epochs, trials in found.items() if trials})
    errors = [100 - value for _, found, _ in lines for trials in found.values() for value in trials]
    least = min((error for error in errors if error > 0), default=1.0)

    # Lines side by side at each length. A trial without errors is drawn at half the least error.
    for index, (label, found, look) in enumerate(lines):
        aside = 1.012 ** (index - (len(lines) - 1) / 2)
        there = [epochs for epochs in lengths if found.get(epochs)]
        means = [max(100 - Summary.of(found[epochs]).mean, least / 2) for epochs in there]
        axes.plot([epochs * aside for epochs in there], means, markersize=6, label=label, **look)
        for epochs in there:
            trials = [max(100 - value, least / 2) for value in found[epochs]]
            axes.plot([epochs * aside] * len(trials), trials, color=look["color"], **TRIAL_DOTS)

    # Axes.
    set_title(axes, "Speed and end: mean test error over the final epochs, and each trial (both axes logarithmic)", 110)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(lengths, [str(epochs) for epochs in lengths])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    if max(errors, default=1.0) < 10 * least:  # a narrow range has few powers of ten, so other ticks have labels, too
        axes.yaxis.set_minor_formatter("{x:g}")
    else:
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("final epochs")
    axes.set_ylabel(ERROR)
    axes.legend(loc="best", ncols=2, fontsize=9)


def _rows_of_study(
    series: Sequence[EpochSeries], dense_percent: Mapping[int, Sequence[float]], epochs: int, further: Sequence[int]
) -> list[DotRow]:
    """Return the rows of one length; `further` are other lengths of the dense network."""
    looks = Looks(series)
    rows = [DotRow("dense", dense_percent.get(epochs, ()), DENSE_LOOK)]
    rows += [DotRow(one.label, one.accuracy_percent.get(epochs, ()), looks.of(one)) for one in series]
    return rows + [DotRow(f"dense, {length} epochs", dense_percent[length], DENSE_LOOK) for length in further]


def _height_inches(labels: Sequence[str]) -> float:
    """Return the height of a part with one row for each label, so that labels of several lines do not overlap."""
    lines = max(label.count("\n") + 1 for label in labels)
    return 0.9 + max(0.5, 0.19 * lines) * len(labels)


def _draw_intervals(axes: Axes, labels: Sequence[str], intervals: Sequence[Interval], margin: float = 0) -> None:
    """Draw one row for each label, with the differences of one length."""
    # Reference: no difference, and the margin of "about equal".
    if margin:
        axes.axvspan(-margin, margin, color=GREY, alpha=0.12, linewidth=0)
    axes.axvline(0, color=GREY, linewidth=0.8)

    # Rows: a filled dot for a shown hypothesis, else a hollow one.
    for one in intervals:
        row = labels.index(one.label)
        colour = _COLOURS[0] if one.shown else GREY
        if one.interval is not None:
            axes.plot(one.interval, [row, row], "-", color=colour, linewidth=1.8)
        axes.plot([one.mean], [row], "o", color=colour, markerfacecolor=colour if one.shown else "white", markersize=7)
        axes.annotate(one.verdict, (1.0, row - 0.3), xycoords=("axes fraction", "data"), ha="right", va="center")

    # Axes.
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)


def _check_any(series: Sequence[Series], dense_error_percent: Sequence[float]) -> None:
    if not series and not dense_error_percent:
        raise ValueError("no trainings to draw")


def _densities(series: Sequence[Series]) -> list[float]:
    """Return the densities of all series, rising."""
    return sorted({density for one in series for density in one.error_percent})


def _at_density(densities: Sequence[float], axis: str) -> str:
    """Return the end of a title that names the only density; empty for several."""
    if len(densities) != 1:
        return ""
    text = tick_text(densities[0])
    return f", {text} {axis}" if axis == WEIGHTS else f", density {text}"


def _draw_accuracy(
    axes: Axes,
    series: Sequence[Series],
    looks: Looks,
    dense_error_percent: Sequence[float],
    *,
    upright: int,
    axis: str = DENSITY,
) -> None:
    """Draw rows at one density, or lines over several."""
    if len(_densities(series)) > 1:
        _draw_lines_by_density(axes, series, looks, dense_error_percent, upright=upright, axis=axis)
        return
    dense = [100 - error for error in dense_error_percent]
    rows = [DotRow("dense", dense, DENSE_LOOK)] if dense else []
    for one in series:
        errors = next(iter(one.error_percent.values()), ())
        printed = next(iter(one.printed_accuracy_percent.values()), None)
        rows.append(DotRow(one.label, [100 - error for error in errors], looks.of(one), printed))
    draw_rows(axes, rows, dense_percent=dense)
    _label_extras(axes, series, [row.accuracy_percent for row in rows])


def _draw_lines_by_density(
    axes: Axes,
    series: Sequence[Series],
    looks: Looks,
    dense_error_percent: Sequence[float],
    *,
    upright: int,
    axis: str,
) -> None:
    """Draw accuracy over density; more than `upright` densities are written at an angle."""
    # Reference: the dense network, its trials at the left edge.
    dense = [100 - error for error in dense_error_percent]
    if dense:
        low, mean, high = limits(dense)
        axes.axhline(mean, color=GREY, linestyle=":", label="dense")
        axes.axhspan(low, high, color=GREY, alpha=0.12, linewidth=0)
        left = [0.01] * len(dense)
        axes.plot(left, dense, color=GREY, transform=axes.get_yaxis_transform(), clip_on=False, **TRIAL_DOTS)

    # Series side by side at each density.
    densities = _densities(series)
    room = _room(densities)
    slot = 2 / max(len(series), 1)
    for index, one in enumerate(series):
        shift = 1.0 if len(series) == 1 else 1 - slot * (index + 0.5)
        _draw_series(axes, one, looks.of(one), room**shift, room ** -(0.35 * slot if len(series) > 1 else 0.2))

    # Axes.
    if densities:
        density_axis(axes, densities, room**1.4, upright, axis)
    else:
        axes.set_xticks([])
    axes.set_ylabel(ACCURACY)
    axes.set_ylim(*within_percent(*axes.get_ylim()))
    groups = [[100 - error for error in errors] for one in series for errors in one.error_percent.values()]
    _label_extras(axes, series, [dense, *groups])


def _label_extras(axes: Axes, series: Sequence[Series], groups: Sequence[Sequence[float]]) -> None:
    """Add to the legend the paper's star and the note on clipped bars, where the plot has them."""
    if any(one.printed_accuracy_percent for one in series):
        label_star(axes)
    if is_clipped(groups):
        label_clipped(axes)


def _draw_series(axes: Axes, one: Series, look: Mapping[str, Any], shift: float, beside: float) -> None:
    """Draw means, bars and trials of one series; `shift` and `beside` are factors on the axis of densities."""
    densities = sorted(one.error_percent, reverse=True)
    accuracy = {density: [100 - error for error in one.error_percent[density]] for density in densities}

    # Means, with a bar where there is a spread.
    bounds = [limits(accuracy[density]) for density in densities]
    single = [len(accuracy[density]) == 1 for density in densities]
    nan = float("nan")
    bars = [
        [nan if alone else mean - low for (low, mean, _), alone in zip(bounds, single, strict=True)],
        [nan if alone else high - mean for (_, mean, high), alone in zip(bounds, single, strict=True)],
    ]
    places = [density * shift for density in densities]
    means = [mean for _, mean, _ in bounds]
    axes.errorbar(places, means, yerr=bars, markersize=6.5, capsize=3, label=one.label, clip_on=False, **look)

    # Trials beside their mean, and the paper's number at it.
    for density in densities:
        if len(values := accuracy[density]) > 1:
            places = [density * shift * beside] * len(values)
            axes.plot(places, values, color=look["color"], clip_on=False, **TRIAL_DOTS)
    for density, printed in one.printed_accuracy_percent.items():
        draw_star(axes, density * shift, printed, look["color"])


def _room(densities: Sequence[float]) -> float:
    """Return the factor that separates a density from the outermost series drawn at it."""
    gaps = [high / low for low, high in zip(densities, densities[1:], strict=False)]
    return float(min(gaps) ** 0.3) if gaps else 1.25


def _draw_panel(axes: Axes, panel: LinePanel, looks: Looks) -> None:
    """Draw the mean, the sd and the single trials of each series at every α."""
    for one in panel.series:
        # Values: one row for each trial.
        grids = {curve.alphas for curve in one.curves}
        if len(grids) != 1:
            raise ValueError(f"{one.label}: its trials are on {len(grids)} grids of α; draw those of one grid")
        (alphas,) = grids
        trials = [curve.barrier_by_alpha if panel.as_barrier else curve.error_percent for curve in one.curves]
        points = [Summary.of(errors) for errors in zip(*trials, strict=True)]

        # Marks: the mean, then spread and trials if there are several.
        look = looks.of(one)
        axes.plot(alphas, [point.mean for point in points], markersize=5, label=one.label, **look)
        if len(trials) > 1:
            low, high = ([point.mean + side * (point.sd or 0.0) for point in points] for side in (-1, 1))
            if not panel.as_barrier:
                low, high = [max(value, 0.0) for value in low], [min(value, 100.0) for value in high]
            # A hollow series has the paler band, so that two methods of one kind differ.
            shade = 0.2 if look["markerfacecolor"] == look["color"] else 0.09
            axes.fill_between(alphas, low, high, color=look["color"], alpha=shade, linewidth=0)
            for errors in trials:
                axes.plot(alphas, errors, color=look["color"], linestyle=look["linestyle"], linewidth=0.6, alpha=0.45)

    # Axes.
    alpha_axis(axes, panel.ends, 24)
    axes.set_ylabel(BARRIER if panel.as_barrier else ERROR)
    if not panel.as_barrier:
        axes.set_ylim(bottom=0)


def _handles(all_axes: Sequence[Axes]) -> dict[str, Any]:
    """Return label → handle, each label once."""
    found: dict[str, Any] = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return found


def _legend_below(figure: Figure, all_axes: Sequence[Axes], *, columns: int = 3, without_rows: bool = False) -> None:
    """Put the legend below the plot; `without_rows` leaves out the labels that a dot plot has on its axis."""
    found = _handles(all_axes)
    if without_rows:
        named = {label.get_text() for axes in all_axes for label in axes.get_yticklabels()}
        found = {label: handle for label, handle in found.items() if label not in named}
    if found:
        place: Any = "outside lower center"
        figure.legend(found.values(), found.keys(), loc=place, ncols=columns, frameon=False, fontsize=10)


def _legend_of_all(figure: Figure, all_axes: Sequence[Axes], number: int) -> None:
    """Name each series once: in the free cell of the grid, else below the panels."""
    free = all_axes[number:]
    for axes in free:
        axes.set_axis_off()
    if free:
        found = _handles(all_axes[:number])
        free[0].legend(found.values(), found.keys(), loc="center left", frameon=False, fontsize=10)
    else:
        _legend_below(figure, all_axes)
