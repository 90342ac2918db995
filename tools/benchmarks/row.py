"""One line of the benchmark table: a ratio of ours to a reference, measured in turns, against its goal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Row:
    """What was measured. `ratio` is what `goal` speaks of; [low, high] is how far it varied."""

    name: str
    ours: float
    reference: float
    ratio: float
    goal: str
    reached: bool
    low: float
    high: float
    note: str


def ratio_row(
    name: str,
    ours: Sequence[float],
    reference: Sequence[float],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    note: str = "",
) -> Row:
    """Compare measurements taken in turns (ours[i] beside reference[i]): median ratio, least and most as interval.

    Exactly one of `at_least` and `at_most` is the goal.
    """
    if (at_least is None) == (at_most is None):
        raise ValueError("a row has one goal: at_least or at_most")
    ratios = [mine / other for mine, other in zip(ours, reference, strict=True)]
    middle = median(ratios)
    if at_least is not None:
        goal, reached = f"≥ {at_least:g}×", middle >= at_least
    else:
        assert at_most is not None
        goal, reached = f"≤ {at_most:g}×", middle <= at_most
    return Row(name, median(ours), median(reference), middle, goal, reached, min(ratios), max(ratios), note)
