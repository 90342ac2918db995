"""Test --jobs: devices, taking chains, a job that fails, stop signals, and progress without a terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.common import logging as messages
from harness.distributed.stop import StoppedError
from harness.reproduction import jobs as module
from harness.reproduction.costs import costs, given_rate
from harness.reproduction.jobs import Jobs, devices
from recipes.presets.figure_options import ReproductionOptions
from recipes.reproduce import check_options

STAND_IN = Path(__file__).with_name("stand_in_job.py")
CORES = sorted(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("jobs", "per_gpu", "gpus", "cores", "threads", "expected"),
    [
        (2, 1, [], 4, 4, [("cores 0-1", "2"), ("cores 2-3", "2")]),
        (3, 1, [], 4, 4, [("core 0", "1"), ("core 1", "1"), ("cores 2-3", "1")]),
        (3, 1, [], 2, 2, [("core 0", "1"), ("core 0", "1"), ("core 1", "1")]),
        (2, 1, [], 64, 4, [("cores 0-31", "2"), ("cores 32-63", "2")]),  # a container with a limit of 4 cores
        (2, 1, ["0", "3"], 8, 8, [("GPU 0", "4"), ("GPU 3", "4")]),
        (3, 2, ["0", "MIG-a"], 6, 6, [("GPU 0", "2"), ("GPU MIG-a", "2"), ("GPU 0", "2")]),
    ],
)
def test_each_job_has_its_own_device(
    jobs: int, per_gpu: int, gpus: list[str], cores: int, threads: int, expected: list[tuple[str, str]]
) -> None:
    found = devices(jobs, per_gpu, gpus, range(cores), threads)
    assert [(one.name, one.threads) for one in found] == expected
    assert [one.gpu for one in found] == [name.removeprefix("GPU ") if gpus else None for name, _ in expected]
    if jobs <= cores:  # no core belongs to two jobs, and none is left
        assert sorted(core for one in found for core in one.cores) == list(range(cores))


def test_more_jobs_than_gpus_have_room_for_are_refused() -> None:
    with pytest.raises(ValueError, match="room for 4 jobs"):
        devices(5, 2, ["0", "1"], range(8), 8)


def test_the_cost_of_each_job_is_listed() -> None:
    plan = ReproductionOptions("claims", dataset="digits", scale="small", trials=2).plan
    dealt = plan.dealt(plan.chains(), 2)
    assert sorted(sum(dealt, [])) == sorted(plan.chains())
    assert [sum(map(plan.epochs, share)) for share in dealt] == [768, 768]
    lines = costs(plan, list(plan.chains()), given_rate(36), jobs=2)
    assert [line.split()[:5] for line in lines[-3:-1]] == [["job", str(n), "768", "10", "7.68"] for n in (1, 2)]
    assert list(plan.by_cost(plan.chains()))[:2] == ["lrr-s1", "lrr-s2"]


def test_chains_of_all_figures_share_no_run() -> None:
    for figure in ("claims", "fig4", "rewinding", "controls"):
        plan = ReproductionOptions(figure, dataset="digits", scale="small").plan
        names = [list(plan.names([chain])) for chain in plan.chains()]
        assert sorted(sum(names, [])) == sorted(plan.names())
        assert all(pair.first.chain == pair.second.chain for pair in plan.pairs())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"jobs": 0}, "1 or more"),
        ({"only": ("dense-t1",)}, "remove --only"),
        ({"study": "depth", "figure": "", "again": "aws-s11"}, "remove --only and --again"),
    ],
)
def test_contradicting_options_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_options(replace(ReproductionOptions("fig3", jobs=2), **changed))  # type: ignore[arg-type]


# ---------------------------------------------------------------------- processes


def started(home: Path, *chains: str, number: int = 2) -> None:
    """Run stand-in jobs over these chains, of 4 epochs each."""
    one = devices(number, 1, [], CORES, number)
    jobs = Jobs(home / "jobs", dict.fromkeys(chains, 4), one)
    jobs.run([sys.executable, str(STAND_IN), str(home), *chains], home)


def made(home: Path) -> dict[str, int]:
    """Return how often each chain was begun."""
    return {path.stem: len(path.read_text().splitlines()) for path in home.glob("*.made")}


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.02)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    monkeypatch.delenv("HARNESS_STATUS", raising=False)


@pytest.fixture
def later() -> Iterator[Callable[[Callable[[], bool], Callable[[], None]], None]]:
    """Return a function that does something in a thread as soon as a condition holds."""
    threads = []

    def start(condition: Callable[[], bool], act: Callable[[], None]) -> None:
        def work() -> None:
            end = time.monotonic() + 60
            while not condition() and time.monotonic() < end:
                time.sleep(0.01)
            act()

        threads.append(threading.Thread(target=work))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join()


@pytest.mark.long
def test_a_failing_job_is_named_and_the_others_finish(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        ChildProcessError, match=r"3 of 4 chains are finished; failed: fail-s1 \(exit code 1, log .*job-"
    ):
        started(tmp_path, "fail-s1", "b", "c", "d")
    assert made(tmp_path) == dict.fromkeys(["fail-s1", "b", "c", "d"], 1)
    said = capsys.readouterr().err
    assert "error: fail-s1 has no data" in said and "failed: fail-s1, exit code 1" in said
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "failed"


@pytest.mark.long
def test_progress_without_a_terminal(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    later: Callable[..., None],
) -> None:
    monkeypatch.setattr(messages, "SECONDS_PER_LINE", 0.0)
    shown = tmp_path / "jobs" / "job-1.json"
    later(lambda: shown.exists() and "wait-" in shown.read_text(), lambda: (time.sleep(0.2), (tmp_path / "go").touch()))
    started(tmp_path, "wait-1", "wait-2", "c")
    lines = capsys.readouterr().err.splitlines()
    assert sum("is finished" in line for line in lines) == 3 and any("3 of 3 chains" in line for line in lines)
    assert any(line.startswith("job 1 ") and "begins" in line for line in lines)
    assert any(line.startswith("all  ") and "/12" in line for line in lines)
    assert not any("\x1b" in line for line in lines)
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "finished"


@pytest.mark.long
def test_ctrl_c_is_passed_on_once_and_the_same_command_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], later: Callable[..., None]
) -> None:
    chains = ["wait-1", "wait-2", "c"]
    later(lambda: {"wait-1", "wait-2"} <= made(tmp_path).keys(), lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(StoppedError, match="SIGINT"):
        started(tmp_path, *chains)
    assert "c" not in made(tmp_path)
    assert json.loads((tmp_path / "status.json").read_text())["status"] == "preempted"
    (tmp_path / "go").touch()
    started(tmp_path, *chains)
    assert made(tmp_path) == {"wait-1": 2, "wait-2": 2, "c": 1}


@pytest.mark.long
def test_no_job_survives_the_kill_of_its_parent(tmp_path: Path) -> None:
    parent = (
        "import os, subprocess, sys, time; from pathlib import Path\n"
        "child = subprocess.Popen(sys.argv[1:], env={**os.environ, 'HARNESS_PARENT': str(os.getpid())})\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    (tmp_path / "claims").mkdir()
    command = [sys.executable, "-c", parent, sys.executable, str(STAND_IN), str(tmp_path), "wait-1"]
    environment = {**os.environ, "HARNESS_JOB": str(tmp_path / "job-1")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        end = time.monotonic() + 60
        while "wait-1" not in made(tmp_path) and time.monotonic() < end:
            time.sleep(0.01)
        process.kill()
    while Path(f"/proc/{child}/stat").exists() and time.monotonic() < end:
        if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.01)
    else:
        assert time.monotonic() < end


@pytest.mark.long
def test_a_second_launch_waits_for_the_jobs_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: Callable[..., None]
) -> None:
    monkeypatch.setattr(module, "_EARLIER_SECONDS", 0.1)
    refused: list[str] = []

    def second() -> None:
        try:
            with module._locked(tmp_path / "jobs"):
                pass
        except ValueError as error:
            refused.append(str(error))
        (tmp_path / "go").touch()

    later(lambda: "wait-1" in made(tmp_path), second)
    started(tmp_path, "wait-1", number=1)
    assert len(refused) == 1 and "another launch" in refused[0]
    with module._locked(tmp_path / "jobs"):
        pass
