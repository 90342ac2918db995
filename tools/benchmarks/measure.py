"""What all benchmarks share: rows and goals, timing in turns, tables, and a description of the machine."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

VERSIONS = ("python", "torch", "torchvision", "numpy", "accelerate", "ffcv", "safetensors", "mlflow")


@dataclass(frozen=True)
class Goal:
    """The least or the most that a value should be."""

    least: float = -float("inf")
    most: float = float("inf")

    def __str__(self) -> str:
        return f"≤ {self.most:,g}" if self.most < float("inf") else f"≥ {self.least:,g}"

    def verdict(self, value: float | None) -> str:
        """Return met, MISSED or not measured."""
        return "not measured" if value is None else "met" if self.least <= value <= self.most else "MISSED"


@dataclass(frozen=True)
class Row:
    """One measurement. A `value` that is a ratio comes with its two sides and the interval it varied in."""

    name: str
    value: float
    goal: Goal | None = None
    note: str = ""
    interval: tuple[float, float] | None = None
    ours: float | None = None
    reference: float | None = None

    @property
    def verdict(self) -> str:
        """Whether the goal is met; empty without one."""
        return self.goal.verdict(self.value) if self.goal else ""

    def cells(self) -> list[str]:
        """Return the row as text; see HEADER."""
        interval = " … ".join(map(number, self.interval)) if self.interval else ""
        goal = str(self.goal or "")
        return [self.name, *map(number, (self.ours, self.reference, self.value)), interval, goal, self.verdict]


HEADER = ["what", "ours", "reference", "value", "interval", "goal", ""]


def compared(
    name: str, ours: Sequence[float], reference: Sequence[float], goal: Goal, note: str = "", *, faster: bool = False
) -> Row:
    """Compare what was measured in turns: the median ratio of ours to the reference, least and most as interval.

    With `faster`, seconds are given and the ratio says how many times as fast ours is.
    """
    pairs = zip(reference, ours, strict=True) if faster else zip(ours, reference, strict=True)
    ratios = [first / second for first, second in pairs]
    extremes = min(ratios), max(ratios)
    return Row(name, median(ratios), goal, note, extremes, median(ours), median(reference))


def in_turns(ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call each way once to warm up, then once in each round, in an order that turns round; return what they gave."""
    for way in ways.values():
        way()
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name in sorted(ways, reverse=bool(turn % 2)):
            found[name].append(ways[name]())
    return found


def seconds(work: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def number(value: float | None) -> str:
    """Write a number with four digits, or whole."""
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def table(lines: Sequence[Sequence[str]]) -> str:
    """Return cells in aligned columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
    return "\n".join(padded)


def about() -> dict[str, str]:
    """Describe date, hardware, system, versions and code."""
    import torch

    from harness.lineage.nodes.code import code_version

    code, info = code_version(), Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cores = f"{len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} torch threads"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": f"{cpu}, {cores}, {memory:.0f} GiB, {gpu}",
        "system": f"{platform.system()} {platform.release()}, load average {os.getloadavg()[0]:.1f} at the start",
        "versions": ", ".join(f"{name} {code[name]}" for name in VERSIONS),
        "code": f"commit {code['commit'][:12]}" + (", with uncommitted changes" if code["dirty"] == "true" else ""),
    }
