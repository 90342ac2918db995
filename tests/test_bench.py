"""tools/bench.py: a quick run as a user starts it, and what it says when goals are missed or a benchmark breaks."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tools.benchmarks.row import Row
from tools.benchmarks.step import median_interval

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_tool", REPOSITORY / "tools" / "bench.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_a_quick_run_prints_the_table_and_writes_json(tmp_path):
    written = tmp_path / "bench.json"
    command = [sys.executable, "tools/bench.py", "--quick", "--only", "mask_size", "prune", "--json", str(written)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(written.read_text())
    by_name = {row["name"]: row for row in result["rows"]}
    assert [row["benchmark"] for row in result["rows"]] == ["mask_size", "mask_size", "prune", "prune"]
    for name, row in by_name.items():
        assert name in done.stdout
        assert row["note"] in done.stdout
        assert row["ratio"] == pytest.approx(row["ours"] / row["reference"])
    # bytes do not depend on the machine, so here the goal itself is tested
    sizes = [row for row in result["rows"] if row["benchmark"] == "mask_size"]
    assert all(row["reached"] and row["ours"] <= row["reference"] for row in sizes)
    for about in ("date", "hardware", "versions", "code"):
        assert f"{about:9} {result[about]}" in done.stdout
    assert "cores" in result["hardware"]
    assert "torch 2" in result["versions"]
    assert "quick" in result["run"]


def test_a_missed_goal_is_marked_and_no_error(bench, monkeypatch, capsys):
    missed = Row("slow thing", 2.0, 1.0, 2.0, "≤ 1×", False, 1.9, 2.1, "a note")
    reached = Row("fast thing", 1.0, 2.0, 0.5, "≤ 1×", True, 0.4, 0.6, "")
    monkeypatch.setattr(bench, "_rows", lambda name, quick: [missed, reached])
    assert bench.main(bench.Arguments(only=("prune",))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines if line.startswith(("slow thing", "fast thing"))] == [
        "MISSED",
        "reached",
    ]
    assert "1 of 2 goals reached" in lines


def test_a_benchmark_that_breaks_is_named_and_the_others_go_on(bench, monkeypatch, capsys):
    def rows(name: str, quick: bool) -> list[Row]:
        if name == "prune":
            raise RuntimeError("not exact")
        return [Row("other thing", 1.0, 1.0, 1.0, "≤ 1×", True, 1.0, 1.0, "")]

    monkeypatch.setattr(bench, "_rows", rows)
    assert bench.main(bench.Arguments(only=("prune", "step"))) == 1
    out = capsys.readouterr().out
    assert "BROKEN  prune: RuntimeError: not exact" in out
    assert "other thing" in out


def test_the_interval_of_a_median_covers_it_as_often_as_it_says():
    generator = np.random.default_rng(0)
    draws = generator.lognormal(size=(300, 51))  # its median is 1
    covered = sum(low <= 1.0 <= high for low, high in (median_interval(draw, 500) for draw in draws))
    assert 0.91 <= covered / len(draws) <= 0.99
