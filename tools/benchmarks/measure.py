"""Rows and goals, timing in turns, tables, and a description of the machine: what all benchmarks share."""

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
        sides, interval = map(number, (self.ours, self.reference, self.value)), map(number, self.interval or ())
        return [self.name, *sides, " … ".join(interval), str(self.goal or ""), self.verdict]


Values = Sequence[float]
HEADER = ["what", "ours", "reference", "value", "interval", "goal", ""]


def compared(
    name: str, ours: Values, reference: Values, goal: Goal | None = None, note: str = "", *, faster: bool = False
) -> Row:
    """Compare values measured in turns: the median ratio, least and most; `faster` turns the ratio of seconds round."""
    ratios = [other / mine if faster else mine / other for mine, other in zip(ours, reference, strict=True)]
    return Row(name, median(ratios), goal, note, (min(ratios), max(ratios)), median(ours), median(reference))


def in_turns(
    ways: Mapping[str, Callable[[], float]], rounds: int, warm: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Call each way to warm up, then `warm`, then each way once a round, in an order that turns round."""
    for way in ways.values():
        way()
    warm()
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name in sorted(ways, reverse=bool(turn % 2)):
            found[name].append(ways[name]())
    return found


def now() -> float:
    """Return the time after all work that this process gave to a GPU is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = now()
    work()
    return now() - started


def number(value: float | None) -> str:
    """Write a number with four digits, or whole."""
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def table(lines: Sequence[Sequence[str]]) -> str:
    """Return cells in aligned columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def about() -> dict[str, str]:
    """Describe date, hardware, system, versions and code."""
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
