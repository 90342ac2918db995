"""Means and spreads over trials."""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation (n − 1; None for a single trial) and number of trials, in the values' unit."""

    mean: float
    sd: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Summarise one group; ValueError for an empty one."""
        values = list(values)
        if not values:
            raise ValueError("a group without trials has no mean")
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    def __str__(self) -> str:
        spread = "" if self.sd is None else f" ± {self.sd:.2f}"
        return f"{self.mean:.2f}{spread} (n={self.count})"


@dataclass(frozen=True)
class Paired:
    """Mean difference of two values measured on the same trials, with its 95 % confidence interval, in their unit.

    The interval is Student's t of the differences, n − 1 degrees of freedom; None for a single trial.
    """

    mean: float
    interval: tuple[float, float] | None
    count: int

    @classmethod
    def of(cls, first: Mapping[Key, float], second: Mapping[Key, float]) -> Self:
        """Compare first − second over the trials that both have; ValueError when there is none."""
        differences = [first[trial] - second[trial] for trial in first if trial in second]
        if not differences:
            raise ValueError("no trial has both values")
        mean, count = statistics.fmean(differences), len(differences)
        if count == 1:
            return cls(mean, None, count)
        from scipy.stats import t

        half = float(t.ppf(0.975, count - 1)) * statistics.stdev(differences) / count**0.5
        return cls(mean, (mean - half, mean + half), count)

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out 0: the sign of the difference is known at the 95 % level."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def epsilon_from_dense(error_percent: Sequence[float]) -> float:
    """Return ε of linear mode connectivity: the sample sd of the dense test error over seeds, percentage points.

    Raises ValueError for fewer than two runs, since one has no spread. Method section 6.
    """
    if len(error_percent) < 2:
        raise ValueError(
            f"ε is the spread of dense runs over seeds and needs at least 2 of them, got {len(error_percent)}; "
            "train dense networks with further seeds"
        )
    return statistics.stdev(error_percent)
