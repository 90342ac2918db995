"""tools/benchmarks/sitting.py: every part at its tiny size on the CPU, and what a crash, a hang or the clock does."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from harness.distributed.world import World
from tools.benchmarks.device import searches, worker
from tools.benchmarks.device import suite as test_suite
from tools.benchmarks.device.asking import WorkerProcess
from tools.benchmarks.device.correctness import Watch
from tools.benchmarks.device.parts import GOALS, NAMES, PARTS, Finding, Goal, Name, Outcome, judged
from tools.benchmarks.device.suite import run_tests
from tools.benchmarks.sitting import Sitting, SittingOptions, goals_table, parse

REPOSITORY = Path(__file__).resolve().parents[1]
ON_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU takes the sizes that are measured")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:  # Accelerate would keep bf16 for the tests that come after
        patch.setattr("harness.distributed.world._has_accelerate", lambda: False)
        world = World("bf16")
        yield world
        world.close()


@pytest.mark.long
@ON_CPU
@pytest.mark.parametrize(
    "part", [pytest.param(part, marks=[pytest.mark.slow] if part == "small" else []) for part in worker.HOMES]
)
def test_a_part_measures_what_its_goals_ask_for(world, part):
    found: list[Finding] = []
    assert worker.run(part, world, 600, found.append) == ("done", "")
    worker.clean_up()
    assert found and all(finding.text for finding in found)
    values = {name: value for finding in found for name, value in finding.values.items()}
    assert all(math.isfinite(value) and value >= 0 for value in values.values())
    asked = {goal.value for goal in GOALS if goal.part == part}
    assert asked <= values.keys() or part == "waits"  # of which a CPU has none


def test_every_part_has_a_home():
    assert set(NAMES) == set(get_args(Name)) == set(worker.HOMES) | {"tests", "searches"}
    assert {goal.part for goal in GOALS} <= set(NAMES)


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
    assert [line.split(":")[0] for line in lines if line.split(":")[0] in NAMES] == list(NAMES)
    result = json.loads((tmp_path / "out.json").read_text())
    assert {part["part"]: part["status"] for part in result["parts"]} == dict.fromkeys(NAMES, "done")
    assert all(row["verdict"] == "not measured" for row in result["goals"])
    assert result["about"]["command"].endswith("out.json")


# A stand-in for the process of the parts, which loads no torch.
WORKER = """
    import json, os, sys, time
    def answer(**line): print(json.dumps(line), flush=True)
    answer(device="cuda", about={"hardware": "a stand-in"}, pid=os.getpid())
    for line in sys.stdin:
        part = json.loads(line)["part"]
        answer(text=f"from {os.getpid()}", values={"pid": os.getpid()})
        if part == "crashes":
            print("a last word", file=sys.stderr, flush=True)
            os.abort()
        if part == "hangs": time.sleep(60)
        answer(status="failed" if part == "fails" else "done", detail="")
"""


@pytest.fixture
def process(tmp_path: Path) -> Iterator[WorkerProcess]:
    process = WorkerProcess([sys.executable, "-c", textwrap.dedent(WORKER)], tmp_path, tmp_path / "log")
    yield process
    process.kill()


@pytest.mark.long
@pytest.mark.parametrize(
    ("part", "status", "detail"),
    [
        ("crashes", "crashed", "killed by SIGABRT: a last word"),
        ("hangs", "stopped", "killed when its time was over"),
        ("fails", "failed", ""),
    ],
)
def test_a_part_that_ends_badly_keeps_its_findings_and_stops_no_other(process, part, status, detail):
    first = process.ask("works", 10, 10)
    same = process.ask("works", 10, 10)
    bad = process.ask(part, 1, 1 if part == "hangs" else 10)
    after = process.ask("works", 10, 10)
    assert (first.status, same.status, bad.status, after.status) == ("done", "done", status, "done")
    assert bad.detail == detail and len(bad.findings) == 1
    assert first.values == same.values == bad.values != after.values  # which had another process


@pytest.mark.long
def test_a_process_that_cannot_start_is_said(tmp_path):
    broken = WorkerProcess([sys.executable, "-c", "raise SystemExit('no torch')"], tmp_path, tmp_path / "log")
    outcome = broken.ask("steps", 10, 10)
    assert (outcome.status, outcome.detail) == ("not run", "the process did not start: exit code 1: no torch")


def test_a_missing_package_costs_its_part_alone_and_an_error_is_named(world, monkeypatch):
    def needs(world: World) -> Iterator[Finding]:
        yield Finding("before")
        import package_that_is_not_there.inside  # noqa: F401

    def fails(world: World) -> Iterator[Finding]:
        raise RuntimeError("CUDA error: an illegal memory access\nmore")
        yield

    def long(world: World) -> Iterator[Finding]:
        yield from (Finding(str(number)) for number in range(9))

    monkeypatch.setattr(worker, "measure", {"needs": needs, "fails": fails, "long": long}.__getitem__)
    found: list[Finding] = []
    assert worker.run("needs", world, 9, found.append) == ("not run", "needs package_that_is_not_there")
    assert found == [Finding("before")]
    status, detail = worker.run("fails", world, 9, found.append)
    assert status == "failed" and "RuntimeError: CUDA error: an illegal memory access at test_sitting.py:" in detail
    assert worker.run("long", world, 0, found.append) == ("stopped", "its time was over")
    assert len(found) == 2


@pytest.mark.long
def test_no_part_begins_after_the_budget_and_the_file_grows_with_each(process, tmp_path, capsys):
    arguments = SittingOptions(seconds=30, json=tmp_path / "new" / "out.json")
    sitting = Sitting(arguments, process, tmp_path, time.monotonic() + 30)
    sitting.begin()
    assert sitting.on_gpu and "a stand-in" in capsys.readouterr().out
    steps, ddp = PARTS[3:5]
    sitting.add(sitting.run(steps))
    assert [part["status"] for part in json.loads(arguments.json.read_text())["parts"]] == ["done"]
    sitting.ends = time.monotonic()
    sitting.add(sitting.run(ddp))
    written = json.loads(arguments.json.read_text())
    assert [(part["part"], part["status"]) for part in written["parts"]] == [("steps", "done"), ("ddp", "not run")]
    assert "ddp: not run: the budget of 30 s was over" in capsys.readouterr().out.splitlines()


def test_goals_stand_beside_what_was_measured():
    values = {"aws, batch 256 [images/s]": 4321.0, "aws / plain, batch 256": 0.97}
    outcomes = [Outcome("steps", "done", findings=[Finding("", values)])]
    lines = goals_table(judged(outcomes, on_gpu=True)).splitlines()
    (rate,) = (line.split() for line in lines if "aws, batch 256" in line)
    (ratio,) = (line.split() for line in lines if "aws / plain, batch 256" in line)
    assert (rate[0], rate[-2:]) == ("met", ["4,000", "4,321"]) and (ratio[0], ratio[-1]) == ("MISSED", "0.97")
    assert sum(line.startswith("not measured") for line in lines) == len(GOALS) - 2
    assert all(row["verdict"] == "not measured" for row in judged(outcomes, on_gpu=False))
    assert Goal("waits", "waits", most=0).verdict(1) == "MISSED" and Goal("waits", "waits", most=0).verdict(0) == "met"


@pytest.mark.parametrize(
    ("results", "stopped", "verdict"),
    [
        ({"a": "passed"}, False, "met"),
        ({"a": "passed"}, True, "not measured"),  # those that did not begin could fail
        ({"a": "skipped"}, False, "not measured"),
        ({"a": "passed", "b": "failed"}, True, "MISSED"),
        ({"a": "passed", "b": "failed"}, False, "MISSED"),
    ],
)
def test_no_failure_is_a_result_only_if_all_tests_ran(results, stopped, verdict):
    share = SimpleNamespace(results=lambda: results, endings=[])
    outcome = test_suite._outcome([share], stopped, 1.0)
    (row,) = (row for row in judged([outcome], on_gpu=True) if row["value"] == "failed tests")
    assert row["verdict"] == verdict


@pytest.mark.parametrize("seconds", ["0", "-5", "nan", "inf", "soon"])
def test_a_budget_that_is_none_is_refused(seconds, capsys):
    with pytest.raises(SystemExit):
        parse(["--seconds", seconds])
    assert "--seconds" in capsys.readouterr().err


@pytest.mark.long
def test_a_sitting_whose_process_did_not_start_measures_nothing(tmp_path):
    broken = WorkerProcess([sys.executable, "-c", "raise SystemExit('no torch')"], tmp_path, tmp_path / "log")
    sitting = Sitting(SittingOptions(seconds=30), broken, tmp_path, time.monotonic() + 30)
    sitting.begin()
    assert not sitting.begun and not sitting.on_gpu and "unknown" in sitting.about["hardware"]


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
def test_tests_are_counted_and_a_crash_loses_one(suite, tmp_path):
    outcome = run_tests(tmp_path, 60, False, [str(suite)])
    assert outcome.status == "failed"
    assert outcome.values == {
        "passed tests": 3,
        "failed tests": 2,
        "skipped tests": 1,
        "tests without a result": 1,
    }
    (finding,) = outcome.findings
    named = [part.split("::")[-1] for part in finding.text.split(";") if "::" in part]
    assert named == ["test_fails", "test_loses_the_device", "test_crashes"]
    assert outcome.detail == "killed by SIGABRT, exit code 70"


@pytest.mark.long
def test_a_test_that_hangs_is_ended_with_its_share(suite, tmp_path):
    suite.write_text(suite.read_text().replace("os.abort()", "time.sleep(60)"))
    started = time.monotonic()
    outcome = run_tests(tmp_path, 5, False, [str(suite)])
    assert time.monotonic() - started < 15
    assert outcome.status == "stopped"
    assert (outcome.values["passed tests"], outcome.values["tests without a result"]) == (1, 1)
    assert "LOST" in outcome.findings[0].text and "test_crashes" in outcome.findings[0].text


def test_waits_are_counted_by_line_within_the_watched_steps_alone():
    def waits() -> None:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    def batches(steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _ in range(steps):
            waits()
            warnings.warn("of something else", stacklevel=1)
            yield torch.zeros(1), torch.zeros(1)

    def hold() -> None:
        waits()

    watch = Watch()
    watch.steps = range(3, 3 + 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for index, _ in enumerate(watch.during(batches)(9)):
            if index in (1, 4):
                hold()
    line = waits.__code__.co_firstlineno + 1
    assert watch.seen == {f"test_sitting.py:{line}": 4} and watch.in_meetings == 1


@pytest.mark.slow
def test_searches_are_stopped_in_time_and_go_on_later(tmp_path, monkeypatch):
    data = REPOSITORY / "data"
    if not (data / "digits" / "train.safetensors").exists():
        pytest.skip("needs data/digits: python tools/prepare_data.py digits")
    runs = tmp_path / "runs"
    monkeypatch.setattr(searches, "ON_CPU", (*searches.ON_CPU[:3], "--warmup-epochs", "400", "--level-epochs", "1"))
    outcome = searches.run_searches(tmp_path, runs, data, 20, False)
    assert outcome.status == "stopped" and outcome.seconds < 21
    assert (tmp_path / "search-1.log").read_text().splitlines()[-1].startswith("stopped: ")
    monkeypatch.undo()
    outcome = searches.run_searches(tmp_path, tmp_path / "others", data, 120, False)
    assert replace(outcome, findings=(), seconds=0.0) == Outcome("searches", "done")
    assert outcome.values["levels"] == 4 and "seed 2 L01" in outcome.findings[0].text


def test_options_are_read():
    assert parse([]) == SittingOptions()
    words = ["--seconds", "60", "--only", "waits", "ddp", "--json", "a.json", "--runs", "b"]
    assert parse(words) == SittingOptions(60, ("waits", "ddp"), Path("a.json"), runs=Path("b"))
    with pytest.raises(SystemExit):
        parse(["--only", "wait"])


def test_searches_without_their_data_say_how_to_get_them(tmp_path, monkeypatch):
    outcome = searches.run_searches(tmp_path, tmp_path, tmp_path / "data", 10, True)
    assert outcome.status == "not run" and "python tools/prepare_data.py fashion_mnist --out" in outcome.detail
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "tyro" else name)
    outcome = searches.run_searches(tmp_path, tmp_path, tmp_path / "data", 10, True)
    assert (outcome.status, outcome.detail) == ("not run", "needs tyro")
