"""The line that the terminal keeps of a finished run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.lineage.nodes.record import LineageRecord, Metric
from harness.runs.run import closing_line


def record(seconds: float, **metrics: float) -> LineageRecord:
    """Return the record of a run with these last metrics, each logged once before with another value."""
    logged = [Metric(name, value + 1, 0, 0) for name, value in metrics.items()]
    logged += [Metric(name, value, 1, 1) for name, value in metrics.items()]
    return LineageRecord(
        key="a59f" * 16,
        kind="level",
        name="L03 d0.512 aws resnet8",
        metrics=tuple(logged),
        started_ms=1000,
        finished_ms=1000 + round(1000 * seconds),
    )


@pytest.mark.parametrize(
    ("seconds", "took"), [(0.4, "0 s"), (12.3, "12 s"), (119.4, "119 s"), (3725, "1:02:05"), (90_000, "1 day, 1:00:00")]
)
def test_a_made_run_shows_error_loss_and_time(seconds: float, took: str) -> None:
    line = closing_line(record(seconds, test_error_percent=1.004, train_loss=0.0412))
    assert line == f"L03 d0.512 aws resnet8  test error 1.00 %  loss 0.0412  {took}  key a59fa59fa59f…"


def test_a_loaded_run_shows_its_origin_instead_of_the_time() -> None:
    line = closing_line(record(12, test_error_percent=1.0), "loaded from runs")
    assert line == "L03 d0.512 aws resnet8  test error 1.00 %  loaded from runs  key a59fa59fa59f…"


def test_a_comparison_shows_its_barrier() -> None:
    assert "  barrier 0.40 points  3 s  " in closing_line(record(3, barrier=0.4))
    line = {"barrier": 0.7, "barrier_floor": 0.3, "barrier_above_line": 0.4}
    assert "  barrier 0.40 points  3 s  " in closing_line(record(3, **line)), "above the line"
    copy = replace(record(3, **line), tags={"question": "norm_init"})
    assert "  errors differ by 0.60 points  3 s  " in closing_line(copy), "the barrier is half of it, or more"
