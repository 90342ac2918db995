"""Means and spreads over trials."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Summary:
    """Mean, sample sd (n − 1; None for a single trial) and number of trials."""

    mean: float
    sd: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Summarise a group; raise ValueError for an empty one."""
        values = list(values)
        if not values:
            raise ValueError("a group without trials has no mean")
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    def __str__(self) -> str:
        spread = "" if self.sd is None else f" ± {self.sd:.2f}"
        return f"{self.mean:.2f}{spread} (n={self.count})"


def epsilon_from_dense(error_percent: Sequence[float]) -> float:
    """Return ε of linear mode connectivity (method section 6), percentage points.

    It is the sample sd of the dense test error over seeds. Raises ValueError for fewer than two runs.
    """
    if len(error_percent) < 2:
        raise ValueError(
            f"ε is the sd of dense runs over seeds and needs at least 2 of them, got {len(error_percent)}; "
            "train dense networks with more seeds"
        )
    return statistics.stdev(error_percent)
