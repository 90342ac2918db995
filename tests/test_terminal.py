"""Test the text that commands print for a comparison."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.analysis.barrier import BarrierCurve
from harness.cli.terminal import browse_command, launcher_of, print_comparison, print_search, print_training
from harness.experiment.comparison import Comparison, Question

CURVE = BarrierCurve((0.0, 0.5, 1.0), (98.0, 70.0, 26.0), 26.0, 98.0, "cumulative", 100, 100)
"""Curve from a copy with 98 % error (α = 0) to its ticket with 26 % (α = 1)."""


def printed(question: Question, capsys: pytest.CaptureFixture[str], epsilon: float | None = 1.0) -> list[str]:
    """Return the printed lines."""
    delivery = cast(Any, SimpleNamespace(run_id=lambda key: None))
    print_comparison(question, Comparison("key", CURVE, Path("x"), delivery, ("b", "a")), epsilon, as_json=False)
    return capsys.readouterr().out.splitlines()


def lines_of(question: Question, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines from the first one in percentage points on."""
    lines = printed(question, capsys)
    return lines[next(number for number, line in enumerate(lines) if "points" in line) :]


def test_the_end_rows_name_the_networks_and_a_line_explains_their_errors(capsys: pytest.CaptureFixture[str]) -> None:
    _, first, middle, last, statistics, *_ = printed("lmc", capsys)
    assert first.endswith("98.00  RUN_B: b") and middle.endswith("70.00") and last.endswith("26.00  RUN_A: a")
    assert "from 100 training images" in statistics and "26.00 % (RUN_A) and 98.00 % (RUN_B)" in statistics
    assert printed("norm_init", capsys)[1].endswith("98.00  b")


def test_without_a_bound_the_options_for_a_verdict_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    hint = "connected? give --epsilon or --dense"
    assert hint in printed("lmc", capsys, None)
    assert hint not in printed("lmc", capsys) + printed("norm_init", capsys, None)


def test_the_excess_above_the_line_comes_before_the_barrier_and_its_floor(capsys: pytest.CaptureFixture[str]) -> None:
    first, second, *_ = lines_of("lmc", capsys)
    assert first == "excess over the straight line: 8.00 points"
    assert second.startswith("barrier 36.00 points, 36.00 of them")


@pytest.mark.parametrize("question", ["norm_init", "signed_init"])
def test_of_a_ticket_and_its_copy_the_difference_of_errors_comes_first(
    capsys: pytest.CaptureFixture[str], question: Question
) -> None:
    first, second, *_ = lines_of(question, capsys)
    assert first == "error of the copy (α = 0) − the ticket's +72.00 points"
    assert second.startswith("excess over the straight line")


@pytest.mark.parametrize(
    ("size", "command", "launcher"),
    [
        (2, "accelerate launch --config_file c.yaml a.py --offline", "accelerate launch --config_file c.yaml"),
        (4, "python a.py", "accelerate launch --num_processes 4"),
    ],
)
def test_the_printed_command_is_launched_as_this_one(
    monkeypatch: pytest.MonkeyPatch, size: int, command: str, launcher: str
) -> None:
    monkeypatch.setattr("sys.argv", ["a.py", "--offline"])
    monkeypatch.setattr("harness.cli.terminal.launch_command", lambda: command)
    world = cast(Any, SimpleNamespace(size=size, device=SimpleNamespace(type="cuda")))
    assert launcher_of(world) == launcher


STORE = "--runs 'my runs' --offline"


def experiment(**settings: Any) -> Any:
    """Return the part of an experiment that the printed commands read."""
    usual = {"runs": Path("runs"), "experiment": "signed-tickets", "offline": False, "trust_code": False}
    config = SimpleNamespace(**(usual | settings))
    store = SimpleNamespace(server=SimpleNamespace(experiment=config.experiment))
    return SimpleNamespace(config=config, store=store, world=SimpleNamespace(is_main=True, size=1))


def run() -> Any:
    record = SimpleNamespace(name="signed_mask L09")
    signed_mask = SimpleNamespace(density=0.134)
    return SimpleNamespace(
        record=record,
        run_id=None,
        key="abcd",
        metric=lambda name: 1.0,
        checkpoint=SimpleNamespace(level=9),
        signed_mask=signed_mask,
    )


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.common.program._started", ("train",))
    monkeypatch.setattr("sys.argv", ["tickets-train", "--ticket", "abcd"])


def test_every_command_after_a_training_finds_its_runs(console: None, capsys: pytest.CaptureFixture[str]) -> None:
    own = experiment(runs=Path("my runs"), offline=True, experiment="mine", trust_code=True)
    print_training(own, run(), sgd_seed=1)
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"  tickets lineage tree abcd {STORE}"  # `tree` has no --experiment and no --trust-code
    compared = f"  tickets compare stability abcd RUN_OF_THE_SECOND {STORE} --experiment mine --trust-code"
    assert compared in said


def test_every_command_after_a_search_finds_its_runs(console: None, capsys: pytest.CaptureFixture[str]) -> None:
    own = experiment(runs=Path("my runs"), offline=True)
    print_search(own, cast(Any, SimpleNamespace(levels=[run()], ticket=run())))
    said = capsys.readouterr().out.splitlines()
    assert f"  tickets train --ticket abcd --kind signed_mask --init-seed 2 {STORE}" in said
    assert said[-1] == f"  tickets lineage list {STORE}"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "ui"),
        ({"runs": Path("mine"), "experiment": "my tests"}, "ui --experiment 'my tests' --runs mine"),
        ({"offline": True}, "list --offline"),  # the UI would show nothing of these runs
    ],
)
def test_runs_are_browsed_where_they_are(console: None, settings: dict[str, Any], words: str) -> None:
    assert browse_command(experiment(**settings)) == f"tickets lineage {words}"
