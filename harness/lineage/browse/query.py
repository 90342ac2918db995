"""What a list is asked for: filters that a tracking server answers, and the same ones for local nodes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from harness.lineage.nodes.index import IndexedRun
from harness.lineage.nodes.record import KINDS

_HALF_DIGIT = 0.0005  # densities are shown with three digits, and meant as they are shown
_WIDTH = re.compile(r"-w\d+$")
_AGE = re.compile(r"(\d+)([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


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

    @property
    def tags(self) -> dict[str, str]:
        """Tags that every node asked for has."""
        wanted = {"method": self.method}
        if self.network is not None:
            wanted["network" if _WIDTH.search(self.network) else "model"] = self.network
        if self.kind is not None:
            wanted["harness.kind" if self.kind in KINDS else "kind_of_training"] = self.kind
        if self.level is not None:
            wanted["level"] = f"{self.level:02d}"
        return {name: value for name, value in wanted.items() if value is not None}

    @property
    def where(self) -> str:
        """The filter in MLflow's language, the experiment aside; "" for everything."""
        conditions = [f"tags.`{name}` = '{value}'" for name, value in self.tags.items()]
        if self.density is not None:
            least, most = self.density  # tags are text; the number is a metric
            conditions += [f"metrics.density >= {least!r}", f"metrics.density <= {most!r}"]
        if self.since_ms is not None:
            conditions.append(f"attributes.start_time >= {self.since_ms}")
        return " AND ".join(conditions)

    def fits(self, entry: IndexedRun) -> bool:
        """Whether a local node is asked for."""
        known = {
            "method": entry.method,
            "model": entry.model,
            "network": entry.network,
            "harness.kind": entry.kind,
            "kind_of_training": entry.used_as,
            "level": entry.level,
        }
        least, most = self.density or (0.0, 1.0)
        return (
            all(known[name] == value for name, value in self.tags.items())
            and (self.density is None or (entry.density is not None and least <= entry.density <= most))
            and (self.since_ms is None or entry.started_ms >= self.since_ms)
            and (self.experiment is None or entry.experiment == self.experiment)
        )


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
