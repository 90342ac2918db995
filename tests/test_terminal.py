"""Test the text that commands print for a comparison."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.analysis.barrier import BarrierCurve
from harness.cli.terminal import print_comparison
from harness.experiment.comparison import Comparison, Question

CURVE = BarrierCurve((0.0, 0.5, 1.0), (98.0, 70.0, 26.0), 26.0, 98.0, "cumulative", 100, 100)
"""Curve from a copy with 98 % error (α = 0) to its ticket with 26 % (α = 1)."""


def lines_of(question: Question, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines printed below the table."""
    delivery = cast(Any, SimpleNamespace(run_id=lambda key: None))
    print_comparison(question, Comparison("key", CURVE, Path("x"), delivery), 1.0, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    return lines[next(number for number, line in enumerate(lines) if "points" in line) :]


def test_the_excess_above_the_line_comes_before_the_barrier_and_its_floor(capsys: pytest.CaptureFixture[str]) -> None:
    first, second, *_ = lines_of("lmc", capsys)
    assert first == "above the straight line 8.00 points"
    assert second.startswith("barrier 36.00 points (at least 36.00")


@pytest.mark.parametrize("question", ["norm_init", "signed_init"])
def test_of_a_ticket_and_its_copy_the_difference_of_errors_comes_first(
    capsys: pytest.CaptureFixture[str], question: Question
) -> None:
    first, second, *_ = lines_of(question, capsys)
    assert first == "error of the copy (α = 0) − the ticket's +72.00 points"
    assert second.startswith("above the straight line")
