"""Provide rows, goals, timing, tables and a machine description."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import torch

from harness.common.machine import hardware
from harness.lineage.nodes.code import code_version

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("python", "torch", "torchvision", "numpy", "accelerate", "ffcv", "safetensors", "mlflow")


@dataclass(frozen=True)
class Goal:
    """Lower and upper limit of a value, both included."""

    least: float = -float("inf")
    most: float = float("inf")

    def __str__(self) -> str:
        return f"≤ {self.most:,g}" if self.most < float("inf") else f"≥ {self.least:,g}"

    def verdict(self, value: float | None) -> str:
        """Return "met", "MISSED", or "not measured" for None."""
        return "not measured" if value is None else "met" if self.least <= value <= self.most else "MISSED"


@dataclass(frozen=True)
class Row:
    """One measurement.

    For a ratio, `interval` is the smallest and largest ratio over all rounds. `ours` and `reference` are its two sides.
    """

    name: str
    value: float
    goal: Goal | None = None
    note: str = ""
    interval: tuple[float, float] | None = None
    ours: float | None = None
    reference: float | None = None

    @property
    def verdict(self) -> str:
        """Verdict of the goal, or "" if there is no goal."""
        return self.goal.verdict(self.value) if self.goal else ""

    def cells(self) -> list[str]:
        """Return the cells of the table row, in the order of HEADER."""
        sides, interval = map(number, (self.ours, self.reference, self.value)), map(number, self.interval or ())
        return [self.name, *sides, " … ".join(interval), str(self.goal or ""), self.verdict]


Values = Sequence[float]
HEADER = ["benchmark", "ours", "reference", "value", "interval", "goal", ""]


def compared(
    name: str, ours: Values, reference: Values, goal: Goal | None = None, note: str = "", *, faster: bool = False
) -> Row:
    """Return a row with the median ratio of paired measurements.

    Its interval is the smallest and the largest ratio.

    Args:
        name: Name of the row.
        ours: Measurements of the harness, one a round.
        reference: Measurements of the reference, one a round.
        goal: Goal for the median ratio.
        note: Text for the report.
        faster: The values are seconds. Return reference / ours instead of ours / reference.
    """
    ratios = [other / mine if faster else mine / other for mine, other in zip(ours, reference, strict=True)]
    return Row(name, median(ratios), goal, note, (min(ratios), max(ratios)), median(ours), median(reference))


def in_turns(
    ways: Mapping[str, Callable[[], float]], rounds: int, warm: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Measure several functions alternately.

    Changes of the machine's load then affect all of them equally.

    Args:
        ways: {name: function that returns one measurement}.
        rounds: Number of measurements of each function. The order is reversed in every second round.
        warm: Called once after each function had one untimed call.

    Returns:
        {name: measurements}.
    """
    for way in ways.values():
        way()
    warm()
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name in sorted(ways, reverse=bool(turn % 2)):
            found[name].append(ways[name]())
    return found


def now() -> float:
    """Return the time in seconds, after pending GPU work is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], object]) -> float:
    """Return the duration of a call in seconds, including its GPU work."""
    started = now()
    work()
    return now() - started


def number(value: float | None) -> str:
    """Format a number with four significant digits.

    From 1000 on it is an integer. None gives "".
    """
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def table(lines: Sequence[Sequence[str]]) -> str:
    """Format rows of cells as text with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def about() -> dict[str, str]:
    """Describe the date, hardware, system, package versions and code version."""
    code, machine = code_version(), hardware()
    parts = [machine["cpu"], f"{machine['cores']} cores, {torch.get_num_threads()} torch threads"]
    parts += [f"{machine['memory_gib']} GiB", *(machine["gpus"] or ["no GPU"])]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": ", ".join(parts),
        "system": f"{platform.system()} {platform.release()}, load average {os.getloadavg()[0]:.1f} at the start",
        "versions": ", ".join(f"{name} {code[name]}" for name in VERSIONS),
        "code": f"commit {code['commit'][:12]}" + (", with uncommitted changes" if code["dirty"] == "true" else ""),
    }
