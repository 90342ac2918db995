"""What a list is asked for: filters that a tracking server answers, and the same ones for local nodes."""

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

_HALF_DIGIT = 0.0005  # densities are shown with three digits, and meant as they are shown
_WIDTH = re.compile(r"-w\d+$")
_AGE = re.compile(r"(\d+)([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
}


class _Filter(NamedTuple):
    in_mlflow: str
    of_local: str
    """Name of the field of `IndexedRun`."""
    comparison: str
    value: str | float | None
    """None: not asked for."""


@dataclass(frozen=True)
class Query:
    """Which nodes are asked for; None: any. `since_ms` is of the start; `density` is (least, most), both included.

    `kind` is one of the record's kinds, or how a ticket was used in a final training (signed_mask, mask, dense, …).
    `network` is a model of any width (resnet20), or one of one width as it is shown (resnet20-w32).
    Raises ValueError on a text that no name can be.
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
            if text is not None and not re.fullmatch(r"[A-Za-z0-9_.-]+", text):
                raise ValueError(f"{what} {text!r}: allowed are letters, digits and _ . -")

    @cached_property
    def _filters(self) -> list[_Filter]:
        """One row for each condition, from which both filters follow: MLflow's and that of local runs."""
        of_width = self.network is not None and _WIDTH.search(self.network)
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
        """The filter in MLflow's language, the experiment aside; "" for everything."""
        return " AND ".join(f"{row.in_mlflow} {row.comparison} {row.value!r}" for row in self._filters)

    def fits(self, run: IndexedRun) -> bool:
        """Return whether a local run is asked for."""
        if self.experiment is not None and run.experiment != self.experiment:
            return False
        pairs = ((getattr(run, row.of_local), row) for row in self._filters)
        return all(value is not None and _COMPARE[row.comparison](value, row.value) for value, row in pairs)


def parse_density(text: str) -> tuple[float, float]:
    """Return (least, most) of '0.1..0.3' or '0.21', half of the third digit wider; ValueError on anything else."""
    least, separator, most = text.partition("..")
    try:
        low, high = float(least), float(most if separator else least)
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low <= high <= 1:
        raise ValueError(f"density {text!r}: give a share of the weights such as 0.21, or a range such as 0.1..0.3")
    return low - _HALF_DIGIT, high + _HALF_DIGIT


def parse_since(text: str, now: datetime | None = None) -> int:
    """Return the time of '2026-01-31', '2026-01-31 14:00' or an age as '7d' (m, h, d, w) in milliseconds since 1970."""
    if age := _AGE.fullmatch(text):
        then = (now or datetime.now()) - timedelta(**{_UNITS[age[2]]: int(age[1])})
    else:
        try:
            then = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(
                f"since {text!r}: give a date such as 2026-01-31, with a time if need be, or an age such as 7d or 12h"
            ) from None
    return int(then.timestamp() * 1000)
