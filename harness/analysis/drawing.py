"""The palette and the axes that all plots share.

Colour and marker stand for the kind, filling and line style for the method. The colours are those of Okabe and Ito,
which colour-blind readers can tell apart. The markers keep kinds apart in grey.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Protocol

from harness.analysis.summary import Summary
from harness.common.optional import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACCURACY = "test accuracy (%)"
ERROR = "test error (%)"
BARRIER = "error barrier $E_α$ (points)"
DENSITY = "density"
WEIGHTS = "kept weights, classifier included"

GREY = "#555555"
_BLUE, _GREEN, _ORANGE, _RED, _PURPLE, _SKY = "#0072B2", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#56B4E9"
_KINDS = {
    "dense": (GREY, "X"),
    "retrain": (_BLUE, "o"),
    "signed_mask": (_RED, "s"),
    "mask": (_GREEN, "^"),
    "signed_mask_norm": (_PURPLE, "D"),
    "level": ("#000000", "P"),
    "random_signs": (_ORANGE, "v"),
    "random_mask": (_SKY, "<"),
}
"""Kind → colour and marker on every plot."""
_FURTHER_KINDS = (("#8B5A2B", "h"), ("#B8A500", "p"), ("#7F3C8D", ">"), ("#5A5A00", "*"))
_FILLINGS = ("full", "hollow", "left", "bottom")
_METHODS = {"aws": "full", "lrr": "hollow"}
"""Method → filling on every plot; further methods take the free fillings."""
_LINES = dict(zip(_FILLINGS, ("-", "--", "-.", ":"), strict=True))

TRIAL_DOTS: Mapping[str, Any] = {"linestyle": "none", "marker": ".", "markersize": 4.5, "alpha": 0.65}
CLIPPED = "bars end at 0 % and 100 %"


class OfTickets(Protocol):
    """A series that belongs to one kind of training and one method."""

    @property
    def kind(self) -> str: ...  # noqa: D102

    @property
    def method(self) -> str: ...  # noqa: D102


class Looks:
    """Choose colour, marker, marker filling and line style of each series of a figure."""

    def __init__(self, series: Iterable[OfTickets]) -> None:
        series = list(series)
        new_kinds = dict.fromkeys(one.kind for one in series if one.kind not in _KINDS)
        self._kinds = _KINDS | dict(zip(new_kinds, cycle(_FURTHER_KINDS), strict=False))
        methods = dict.fromkeys(one.method for one in series)
        taken = {_METHODS[one] for one in methods if one in _METHODS}
        free = [one for one in _FILLINGS if one not in taken] or list(_FILLINGS)
        new_methods = [one for one in methods if one not in _METHODS]
        self._fillings = _METHODS | dict(zip(new_methods, cycle(free), strict=False))

    def of(self, one: OfTickets) -> dict[str, Any]:
        """Return the arguments of Matplotlib's `plot` and `errorbar`."""
        colour, marker = self._kinds[one.kind]
        filling = self._fillings[one.method]
        return {
            "color": colour,
            "marker": marker,
            "fillstyle": filling if filling in ("left", "bottom") else "full",
            "markerfacecolor": "white" if filling == "hollow" else colour,
            "markerfacecoloralt": "white",
            "linestyle": _LINES[filling],
        }


DENSE_LOOK: Mapping[str, Any] = {"color": GREY, "marker": _KINDS["dense"][1], "linestyle": ":"}


@dataclass(frozen=True)
class DotRow:
    """One row of a dot plot: the test accuracy of each trial, percent."""

    label: str
    accuracy_percent: Sequence[float]
    """Empty for a row without finished trials."""
    look: Mapping[str, Any]
    printed_percent: float | None = None
    """A paper's printed accuracy."""


def draw_rows(axes: Axes, rows: Sequence[DotRow], *, dense_percent: Sequence[float] = ()) -> None:
    """Draw a dot plot: mean ± sd of each row, and its trials as small dots below the mean.

    A dotted line and a grey band repeat the mean ± sd of the dense network.
    """
    # Reference: the dense network.
    if dense_percent:
        low, mean, high = limits(dense_percent)
        axes.axvline(mean, color=GREY, linestyle=":", linewidth=1)
        axes.axvspan(low, high, color=GREY, alpha=0.12, linewidth=0)

    # Rows: the first one on top.
    for place, row in enumerate(rows):
        values = list(row.accuracy_percent)
        if values:
            low, mean, high = limits(values)
            bar = [[mean - low], [high - mean]] if len(values) > 1 else None
            look = {**row.look, "linestyle": "none"}
            axes.errorbar([mean], [place], xerr=bar, markersize=7, capsize=3, label=row.label, clip_on=False, **look)
        if len(values) > 1:
            below = [place + 0.3] * len(values)
            axes.plot(values, below, color=row.look["color"], clip_on=False, **TRIAL_DOTS)
        if row.printed_percent is not None:
            draw_star(axes, row.printed_percent, place, row.look["color"])

    # Axes.
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(ACCURACY)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_xlim(*within_percent(*axes.get_xlim()))


def limits(accuracy_percent: Iterable[float]) -> tuple[float, float, float]:
    """Return mean − sd, mean and mean + sd of percentages, clipped to 0..100; a single trial has no sd."""
    summary = Summary.of(accuracy_percent)
    sd = summary.sd or 0.0
    return max(summary.mean - sd, 0.0), summary.mean, min(summary.mean + sd, 100.0)


def is_clipped(groups: Iterable[Sequence[float]]) -> bool:
    """Return whether mean ± sd of any group of percentages leaves 0..100."""
    summaries = [Summary.of(group) for group in groups if group]
    return any(one.mean + (one.sd or 0.0) > 100 or one.mean < (one.sd or 0.0) for one in summaries)


def within_percent(low: float, high: float) -> tuple[float, float]:
    """Return the limits of an axis of percentages, clipped to 0..100."""
    return max(low, 0.0), min(high, 100.0)


def draw_star(axes: Axes, x: float, y: float, colour: str) -> None:
    """Mark a number that a paper prints."""
    axes.plot([x], [y], "*", color=colour, markersize=11, markerfacecolor="none", zorder=3, clip_on=False)


def label_star(axes: Axes) -> None:
    """Add the star of printed numbers to the legend."""
    axes.plot([], [], "*", color=GREY, markersize=11, markerfacecolor="none", label="printed in the paper")


def label_clipped(axes: Axes) -> None:
    """Add to the legend that error bars end where percentages do."""
    axes.plot([], [], linestyle="none", label=CLIPPED)


def density_axis(axes: Axes, ticks: Sequence[float], room: float, upright: int, label: str) -> None:
    """Set up a logarithmic axis that runs from dense (left) to sparse.

    Args:
        axes: The panel.
        ticks: Densities, or numbers of weights, rising.
        room: Factor by which the axis exceeds them on either side.
        upright: More ticks than this are written at an angle.
        label: Name of the axis.
    """
    from matplotlib.ticker import NullFormatter, NullLocator

    axes.set_xlabel(label)
    axes.set_xscale("log")
    axes.set_xticks(ticks, [tick_text(tick) for tick in ticks])
    if len(ticks) > upright:
        axes.tick_params(axis="x", labelrotation=60)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(ticks[-1] * room, ticks[0] / room)


def tick_text(tick: float) -> str:
    """Return a density (0..1) or a number of weights as axes print it."""
    return f"{tick:,.0f}" if tick > 1 else f"{tick:.3g}"


def alpha_axis(axes: Axes, ends: tuple[str, str], width: int) -> None:
    """Set up the axis of α, with the names of the networks at α = 0 and at α = 1 below it."""
    names = ["\n".join(wrap(name, width)) for name in ends]
    ticks = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    labels = [f"{tick:g}" for tick in ticks]
    labels[0], labels[-1] = f"0\n{names[0]}", f"1\n{names[1]}"
    axes.set_xticks(ticks, labels)
    shown = axes.get_xticklabels()
    shown[0].set_horizontalalignment("left")
    shown[-1].set_horizontalalignment("right")
    axes.set_xlabel("α")


@contextmanager
def new_figure(
    size_inches: tuple[float, float],
    rows: int = 1,
    columns: int = 1,
    heights: Sequence[float] = (),
    wide: Collection[int] = (),
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Open a figure with a grid of axes, row by row.

    The figure stays outside pyplot: it needs no display and no global state. Equal input gives an equal SVG.

    Args:
        size_inches: Width and height.
        rows: Rows of the grid.
        columns: Columns of the grid.
        heights: Relative heights of the rows, by default equal.
        wide: Rows with a single panel, as wide as the figure.
    """
    # Phase: load matplotlib, and fix the style for equal SVG files.
    require("matplotlib", "a plot")
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {"svg.hashsalt": "harness", "svg.fonttype": "path", "font.size": 10}
    with matplotlib.rc_context(style):
        # Phase: draw the grid of axes.
        figure = Figure(figsize=size_inches, layout="constrained")
        grid = figure.add_gridspec(rows, columns, height_ratios=heights or None)
        places = [grid[row, one] for row in range(rows) for one in ([slice(None)] if row in wide else range(columns))]
        all_axes = [figure.add_subplot(place) for place in places]
        for axes in all_axes:
            axes.grid(axis="y", color="#dddddd", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_axisbelow(True)
        yield figure, all_axes


def set_title(axes: Axes, title: str, width: int = 70) -> None:
    """Write the title of a panel above its left corner."""
    axes.set_title(wrapped(title, width), fontsize=11, loc="left")


def wrapped(text: str, width: int = 34) -> str:
    """Return text in lines of at most `width` characters."""
    return "\n".join(wrap(text, width))


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as PNG and SVG, and return both paths."""
    paths = [stem.with_name(stem.name + ending) for ending in (".png", ".svg")]
    figure.savefig(paths[0], dpi=150)
    figure.savefig(paths[1], metadata={"Date": None})
    return paths
