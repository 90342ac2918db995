"""Define run filters once, for the tracking server and for local runs."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, NamedTuple

from harness.lineage.nodes.index import IndexedRun
from harness.lineage.nodes.record import KINDS

_HALF_DIGIT = 0.0005  # densities are shown with three digits, so a filter must match the rounded value
_PARTICULAR = re.compile(r"-w\d+$|\(.*\)$")
"""End of the name of a network with a width or with options."""
_AGE = re.compile(r"(\d+)([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
}


class _Filter(NamedTuple):
    """One condition, with the names of its field in MLflow and locally."""

    in_mlflow: str
    of_local: str
    """Field of `IndexedRun`."""
    comparison: str
    """Key of _COMPARE."""
    value: str | float | None
    """None disables the condition."""


@dataclass(frozen=True)
class Query:
    """Filter for runs. All conditions must hold, and None disables a condition.

    `kind` is one of KINDS, or a kind of final training (signed_mask, mask, dense, …). `network` is a model of any width
    (resnet20) or of one width (resnet20-w32), or one from elsewhere with any options (timm:test_vit) or with these
    (timm:test_vit(depth=2)). `density` is (lowest, highest), both included. `since_ms` is the earliest start, in ms
    since 1970.

    Raises:
        ValueError: `method`, `network` or `kind` has characters that no name has.
    """

    experiment: str | None = None
    method: str | None = None
    network: str | None = None
    kind: str | None = None
    level: int | None = None
    density: tuple[float, float] | None = None
    since_ms: int | None = None

    def __post_init__(self) -> None:
        for what in ("method", "network", "kind"):
            text = getattr(self, what)
            if text is not None and not re.fullmatch(r"[A-Za-z0-9_.:=,()-]+", text):
                raise ValueError(f"{what} {text!r}: allowed are letters, digits and _ . : = , ( ) -")

    @cached_property
    def _filters(self) -> list[_Filter]:
        """All active conditions, for both the MLflow and the local filter."""
        of_width = self.network is not None and _PARTICULAR.search(self.network)
        rows = [
            _Filter("tags.`method`", "method", "=", self.method),
            _Filter("tags.`network`", "network", "=", self.network if of_width else None),
            _Filter("tags.`model`", "model", "=", None if of_width else self.network),
            _Filter("tags.`harness.kind`", "kind", "=", self.kind if self.kind in KINDS else None),
            _Filter("tags.`kind_of_training`", "used_as", "=", None if self.kind in KINDS else self.kind),
            _Filter("tags.`level`", "level", "=", f"{self.level:02d}" if self.level is not None else None),
            _Filter("metrics.density", "density", ">=", self.density[0] if self.density else None),
            _Filter("metrics.density", "density", "<=", self.density[1] if self.density else None),
            # in MLflow, a search has the density of its deepest level
            _Filter("tags.`harness.kind`", "kind", "!=", "search" if self.density else None),
            _Filter("attributes.start_time", "started_ms", ">=", self.since_ms),
        ]
        return [row for row in rows if row.value is not None]

    @property
    def where(self) -> str:
        """The filter in MLflow's query syntax, without the experiment; "" matches all runs."""
        return " AND ".join(f"{row.in_mlflow} {row.comparison} {row.value!r}" for row in self._filters)

    def fits(self, run: IndexedRun) -> bool:
        """Return whether a local run matches all conditions, including the experiment."""
        if self.experiment is not None and run.experiment != self.experiment:
            return False
        pairs = ((getattr(run, row.of_local), row) for row in self._filters)
        return all(value is not None and _COMPARE[row.comparison](value, row.value) for value, row in pairs)


def parse_density(text: str) -> tuple[float, float]:
    """Parse a density such as '0.21' or a range such as '0.1..0.3'.

    Returns:
        (lowest, highest), widened by half of the third decimal to match rounded values.

    Raises:
        ValueError: The text has another form, or the range is empty or outside of 0..1.
    """
    least, separator, most = text.partition("..")
    try:
        low, high = float(least), float(most if separator else least)
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low <= high <= 1:
        raise ValueError(f"density {text!r}: give a share of the weights such as 0.21, or a range such as 0.1..0.3")
    return low - _HALF_DIGIT, high + _HALF_DIGIT


def parse_since(text: str, now: datetime | None = None) -> int:
    """Parse a date or an age as a time.

    Allowed are a date ('2026-01-31'), a date with time ('2026-01-31 14:00'), and an age ('7d'; units m, h, d, w).

    Args:
        text: The date or age, in local time.
        now: Reference for ages, by default the current time.

    Returns:
        The time in ms since 1970.

    Raises:
        ValueError: The text has another form.
    """
    if age := _AGE.fullmatch(text):
        then = (now or datetime.now()) - timedelta(**{_UNITS[age[2]]: int(age[1])})
    else:
        try:
            then = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(
                f"since {text!r}: give a date such as 2026-01-31, optionally with a time, or an age such as 7d or 12h"
            ) from None
    return int(then.timestamp() * 1000)
