"""Test tools/benchmarks/sitting.py.

Tests cover tiny runs of every part on the CPU, crashes, hangs and the time budget.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import subprocess
import sys
import textwrap
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.distributed.world import World
from tools.benchmarks import sitting
from tools.benchmarks.measure import Row
from tools.benchmarks.sitting import GOALS, PARTS, Outcome, ask, count_tests, judged, parse, run_searches, run_tests
from tools.benchmarks.steps import MEETING, watched

REPOSITORY = Path(__file__).resolve().parents[1]
ON_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the parts have their full size")
Send = Callable[[Any], None]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:  # Accelerate would keep bf16 for later tests of this process
        patch.setattr("harness.distributed.world._has_accelerate", lambda: False)
        world = World("bf16")
        yield world
        world.close()


@pytest.mark.long
@ON_CPU
@pytest.mark.parametrize(
    "part",
    [
        pytest.param(part, marks=[pytest.mark.slow] if part == "small" else [])
        for part, (_, home) in PARTS.items()
        if home
    ],
)
def test_a_part_measures_the_quantities_of_its_goals(world, part):
    found: list[Row] = []
    assert sitting.measure(part, world, 600, found.append) == ("done", "")
    torch._dynamo.reset()
    assert found and all(math.isfinite(row.value) and row.value >= 0 for row in found)
    asked = {name for goal, name in GOALS if goal == part}
    assert asked <= {row.name for row in found} or part == "waits"  # a CPU has no waits to measure


def test_every_part_has_a_function_and_a_time_share():
    assert {part for part, (_, home) in PARTS.items() if not home} == {"tests", "searches"}
    assert all(0 < share <= 1 for share, _ in PARTS.values()) and {part for part, _ in GOALS} <= set(PARTS)


@ON_CPU
@pytest.mark.slow
def test_the_command_prints_a_line_for_each_part(tmp_path):
    command = [sys.executable, "tools/benchmarks/sitting.py", "--seconds", "240", "--json", str(tmp_path / "out.json")]
    started = time.monotonic()
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - started < 242
    lines = done.stdout.splitlines()
    assert "cpu: tries the code, not the speed" in lines
    assert [line.split(":")[0] for line in lines if line.split(":")[0] in PARTS] == list(PARTS)
    result = json.loads((tmp_path / "out.json").read_text())
    assert {part["part"]: part["status"] for part in result["parts"]} == dict.fromkeys(PARTS, "done")
    assert all(row["verdict"] == "not measured" for row in result["goals"])
    assert result["about"]["command"].endswith("out.json")


def stand_in(part: str, seconds: float, send: Send) -> tuple[str, str]:
    """Replace the function that runs a part in a child process.

    Parts named "crashes", "hangs" and "fails" do so. All parts send their process ID as a measured value.
    """
    if part == "about":
        send({"on_gpu": True, "hardware": "a stand-in"})
        return "done", ""
    send(Row(part, os.getpid()))
    if part == "crashes":
        print("a last word", file=sys.stderr, flush=True)
        faulthandler.disable()  # no traceback in the log
        os.abort()
    if part == "hangs":
        time.sleep(60)
    return "failed" if part == "fails" else "done", ""


@pytest.mark.long
@pytest.mark.parametrize(
    ("part", "status", "detail"),
    [
        ("crashes", "crashed", "killed by SIGABRT: a last word"),
        ("hangs", "stopped", "killed at its time limit"),
        ("fails", "failed", ""),
    ],
)
def test_a_failed_part_keeps_its_rows_and_the_next_part_runs(tmp_path, part, status, detail):
    log = tmp_path / "log"
    bad = ask(part, 1, 1 if part == "hangs" else 10, log, stand_in)
    after = ask("works", 10, 10, log, stand_in)
    assert (bad.status, after.status) == (status, "done")
    assert bad.detail.startswith(detail.split(":")[0]) and len(bad.rows) == 1
    assert bad.rows[0].value != after.rows[0].value  # the next part ran in another process


def test_a_missing_package_skips_its_part_and_an_error_is_named(world, monkeypatch):
    def needs(world: World) -> Iterator[Row]:
        yield Row("before", 1)
        import package_that_is_not_there.inside  # noqa: F401

    def fails(world: World) -> Iterator[Row]:
        raise RuntimeError("CUDA error: an illegal memory access\nmore")
        yield

    def long(world: World) -> Iterator[Row]:
        yield from (Row(str(number), number) for number in range(9))

    for function in (needs, fails, long):
        monkeypatch.setitem(PARTS, function.__name__, (1.0, f"steps:{function.__name__}"))
        monkeypatch.setattr(f"tools.benchmarks.steps.{function.__name__}", function, raising=False)
    found: list[Row] = []
    assert sitting.measure("needs", world, 9, found.append) == ("not run", "needs package_that_is_not_there")
    assert found == [Row("before", 1)]
    status, detail = sitting.measure("fails", world, 9, found.append)
    assert status == "failed" and "RuntimeError: CUDA error: an illegal memory access at test_sitting.py:" in detail
    assert sitting.measure("long", world, 0, found.append) == ("stopped", "its time limit was reached")
    assert len(found) == 2


@pytest.mark.long
def test_no_part_starts_after_the_budget_and_each_is_written_at_once(tmp_path, monkeypatch, capsys):
    written: list[list[str]] = []
    path = tmp_path / "new" / "out.json"

    def slowly(part: str, seconds: float, kill_after: float, log: Path) -> Outcome:
        written.append([one["status"] for one in json.loads(path.read_text())["parts"]] if path.exists() else [])
        outcome = ask(part, seconds, kill_after, log, stand_in)
        time.sleep(3 if part == "steps" else 0)
        return outcome

    monkeypatch.setattr(sitting, "ask", slowly)
    assert sitting.main(parse(["--seconds", "4", "--only", "steps", "waits", "ddp", "--json", str(path)])) == 0
    result, said = json.loads(path.read_text()), capsys.readouterr().out
    statuses = [(part["part"], part["status"]) for part in result["parts"]]
    assert statuses == [("waits", "done"), ("steps", "done"), ("ddp", "not run")]
    assert written == [[], [], ["done"]]
    assert "a stand-in" in said and "ddp: not run: the budget of 4 s was used up (0 s)" in said.splitlines()


def test_measurements_are_compared_with_goals():
    rows = Row("aws, batch 256 [images/s]", 4321.0), Row("aws / plain, batch 256", 0.97)
    outcomes = [Outcome("steps", "done", rows=rows)]
    found = {row["value"]: row for row in judged(outcomes, on_gpu=True)}
    rate, ratio = (found[row.name] for row in rows)
    assert (rate["verdict"], rate["goal"], rate["measured"]) == ("met", "≥ 4,000", 4321.0)
    assert (ratio["verdict"], ratio["measured"]) == ("MISSED", 0.97)
    assert sum(row["verdict"] == "not measured" for row in found.values()) == len(GOALS) - 2
    assert all(row["verdict"] == "not measured" for row in judged(outcomes, on_gpu=False))
    assert GOALS["waits", "waits"].verdict(1) == "MISSED" and GOALS["waits", "waits"].verdict(0) == "met"


@pytest.mark.parametrize(
    ("results", "code", "verdict"),
    [
        ({"a": "passed"}, 0, "met"),
        ({"a": "passed"}, None, "not measured"),  # tests that did not start could fail
        ({"a": "skipped"}, 0, "not measured"),
        ({"a": "passed", "b": "failed"}, None, "MISSED"),
        ({"a": "passed", "b": "failed"}, 1, "MISSED"),
        ({"a": "passed", "b": "begun"}, 1, "not measured"),
    ],
)
def test_zero_failures_count_only_if_all_tests_ran(results, code, verdict):
    (row,) = (row for row in judged([count_tests(results, code, 1.0)], on_gpu=True) if row["value"] == "failed tests")
    assert row["verdict"] == verdict


@pytest.mark.parametrize("seconds", ["0", "-5", "nan", "inf", "soon"])
def test_an_invalid_budget_is_refused(seconds, capsys):
    with pytest.raises(SystemExit):
        parse(["--seconds", seconds])
    assert "--seconds" in capsys.readouterr().err


def test_a_broken_device_skips_every_part(monkeypatch, capsys):
    broken = Outcome("about", "crashed", "exit code 1: no torch")
    monkeypatch.setattr(sitting, "ask", lambda *asked: broken)
    assert sitting.main(parse(["--only", "steps"])) == 1
    said = capsys.readouterr().out
    assert "unknown: exit code 1: no torch" in said and "steps: not run: exit code 1: no torch (0 s)" in said


SUITE = """
    import os, time, pytest
    def test_passes(): pass
    def test_fails(): assert False
    @pytest.mark.skip
    def test_is_skipped(): pass
    def test_crashes(): os.abort()
    def test_comes_after_a_crash(): pass
    def test_loses_the_device(): raise RuntimeError("CUDA error: device-side assert triggered")
    def test_comes_after_that(): pass
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "test_of_this.py"
    path.write_text(textwrap.dedent(SUITE))
    return path


@pytest.mark.long
def test_tests_are_counted_and_a_crash_loses_only_one(suite, tmp_path):
    outcome = run_tests(tmp_path, 240, False, [str(suite)])  # the limit leaves room for a busy machine
    assert outcome.status == "failed", (tmp_path / "tests.log").read_text()
    values = {row.name: row.value for row in outcome.rows}
    assert values == {"passed tests": 3, "failed tests": 3, "skipped tests": 1, "tests without a result": 0}
    for name in ("test_fails", "test_crashes", "test_loses_the_device"):
        assert name in outcome.rows[2].note


@pytest.mark.long
def test_a_hanging_test_is_killed(suite, tmp_path):
    suite.write_text(suite.read_text().replace("os.abort()", "time.sleep(60)"))
    started = time.monotonic()
    outcome = run_tests(tmp_path, 15, False, [str(suite)])
    assert time.monotonic() - started < 25
    assert outcome.status == "stopped"
    values = {row.name: row.value for row in outcome.rows}
    assert (values["passed tests"], values["tests without a result"]) == (1, 1)
    assert "LOST" in outcome.rows[-1].note and "test_crashes" in outcome.rows[-1].note


def test_waits_are_counted_per_line_and_only_in_watched_steps():
    def waits() -> None:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    def batches(steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _ in range(steps):
            waits()
            warnings.warn("of something else", stacklevel=1)
            yield torch.zeros(1), torch.zeros(1)

    def hold() -> None:
        waits()

    seen = Counter[str]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for index, _ in enumerate(watched(batches, seen, skipped=3, steps=4)(9)):
            if index in (1, 4):
                hold()
    line = waits.__code__.co_firstlineno + 1
    assert seen == {f"test_sitting.py:{line}": 4, MEETING: 1}


@pytest.mark.slow
def test_searches_stop_in_time_and_resume_later(tmp_path, monkeypatch):
    data = REPOSITORY / "data"
    if not (data / "digits" / "train.safetensors").exists():
        pytest.skip("needs data/digits: python tools/prepare_data.py digits")
    longer = (*sitting.SEARCH[False][:3], "--warmup-epochs", "400", "--level-epochs", "1")
    with monkeypatch.context() as patch:
        patch.setitem(sitting.SEARCH, False, longer)
        outcome = run_searches(tmp_path, tmp_path / "runs", data, 20, False)
    assert outcome.status == "stopped" and outcome.seconds < 21
    assert (tmp_path / "search-1.log").read_text().splitlines()[-1].startswith("stopped: ")
    outcome = run_searches(tmp_path, tmp_path / "others", data, 120, False)
    assert replace(outcome, rows=(), seconds=0.0) == Outcome("searches", "done")
    assert outcome.rows[0] == Row("levels", 4)
    assert "seed 2, level 1 [test error %]" in {row.name for row in outcome.rows}


def test_options_are_parsed():
    words = ["--seconds", "60", "--only", "waits", "ddp", "--json", "a.json", "--runs", "b"]
    options = parse(words)
    assert (options.seconds, options.only, options.json, options.runs) == (
        60,
        ["waits", "ddp"],
        Path("a.json"),
        Path("b"),
    )
    assert parse([]).only == list(PARTS) and parse([]).seconds == 270
    with pytest.raises(SystemExit):
        parse(["--only", "wait"])


def test_searches_without_data_name_the_command_to_prepare_them(tmp_path, monkeypatch):
    outcome = run_searches(tmp_path, tmp_path, tmp_path / "data", 10, True)
    assert outcome.status == "not run" and "python tools/prepare_data.py fashion_mnist --out" in outcome.detail
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "tyro" else name)
    outcome = run_searches(tmp_path, tmp_path, tmp_path / "data", 10, True)
    assert (outcome.status, outcome.detail) == ("not run", "needs tyro")
