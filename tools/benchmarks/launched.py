"""The parts of a sitting that run in processes of their own: `tests/gpu`, and two searches at once.

This file is a pytest plugin, too, which writes a line for each beginning and end of a test: the clock may stop them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.benchmarks.measure import Row
from tools.benchmarks.worker import Outcome, ended_by, kill

ROOT = Path(__file__).resolve().parents[2]
TESTS_ON_CPU = ("tests/gpu/test_masks_on_gpu.py", "tests/gpu/test_data_on_gpu.py")
"""Enough to try the code; all of them take minutes on a CPU."""
LINES, IS_WORKER = "SITTING_TESTS", "PYTEST_XDIST_WORKER" in os.environ
SEARCH = {
    True: ("recipes/aws_fashion_mnist.py", "--precision", "bf16", "--checkpoint-every", "0.5"),
    False: ("recipes/aws_digits.py", "--num-levels", "1", "--warmup-epochs", "1", "--level-epochs", "1"),
}
SAVING_SECONDS = 8.0
"""From the signal to stop until a search has saved its state."""


def pytest_runtest_logstart(nodeid: str, location: Any) -> None:
    """Write that a test begins."""
    _write(nodeid, "begun")


def pytest_runtest_logreport(report: Any) -> None:
    """Write how a test ended; leave a process whose device is lost, since every later test in it would fail."""
    if report.when == "call" or report.outcome != "passed":
        _write(report.nodeid, report.outcome)
    if IS_WORKER and report.failed and "CUDA error" in str(report.longrepr):
        os._exit(70)


def _write(test: str, outcome: str) -> None:
    if not IS_WORKER and LINES in os.environ:
        with open(os.environ[LINES], "a") as file:
            file.write(json.dumps([test, outcome]) + "\n")


def run_tests(directory: Path, seconds: float, on_gpu: bool, tests: Sequence[str] = ()) -> Outcome:
    """Run the suite for at most `seconds`, on a process a core, eight at most; a crash costs the test it was at."""
    if importlib.util.find_spec("pytest") is None:
        return Outcome("tests", "not run", "needs pytest")
    number = min(8, len(os.sched_getaffinity(0))) if on_gpu else 1
    shared = importlib.util.find_spec("xdist") is not None
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tools.benchmarks.launched",
        *(["-n", str(number)] if shared else []),
    ]
    own = {} if on_gpu else {"HARNESS_GPU_TESTS_DEVICE": "cpu"}
    own |= {LINES: str(directory / "tests.jsonl"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    asked = [*(tests or (("tests/gpu",) if on_gpu else TESTS_ON_CPU))]
    code, took = _run([[*command, *asked]], [directory / "tests.log"], own, seconds, 0)
    found: dict[str, str] = {}
    for line in (directory / "tests.jsonl").read_text().splitlines() if (directory / "tests.jsonl").exists() else ():
        test, outcome = json.loads(line)
        if found.get(test, "begun") == "begun" or outcome == "failed":
            found[test] = outcome
    return count_tests(found, code[0], took, number if shared else 1)


def count_tests(found: dict[str, str], code: int | None, seconds: float, processes: int = 1) -> Outcome:
    """Count the tests; without a failure this is a result only if all ran."""
    names = {
        kind: [test for test, one in found.items() if one == kind] for kind in ("passed", "failed", "skipped", "begun")
    }
    note = f"on {processes} process(es); " + "; ".join(names["failed"] + [f"LOST {test}" for test in names["begun"]])
    rows = [Row("passed tests", len(names["passed"])), Row("skipped tests", len(names["skipped"]))]
    for name, number in (("failed tests", len(names["failed"])), ("tests without a result", len(names["begun"]))):
        if number or (code is not None and names["passed"] and not names["begun"]):
            rows.append(Row(name, number, note=note))
    if not found:
        return Outcome(
            "tests", "failed", f"no test began ({'too slow' if code is None else ended_by(code)})", (), seconds
        )
    status = "stopped" if code is None else "failed" if names["failed"] else "crashed" if names["begun"] else "done"
    return Outcome("tests", status, "its time was over" if code is None else "", tuple(rows), seconds)


def run_searches(directory: Path, runs: Path, data: Path, seconds: float, on_gpu: bool) -> Outcome:
    """Search with two seeds of u at once for at most `seconds`; finished levels lie in `runs`, for a later sitting."""
    if missing := [name for name in ("tyro", "tqdm") if importlib.util.find_spec(name) is None]:
        return Outcome("searches", "not run", f"needs {', '.join(missing)}")
    name = "fashion_mnist" if on_gpu else "digits"
    if not (data / name / "train.safetensors").is_file():
        return Outcome("searches", "not run", f"needs {data / name}: python tools/prepare_data.py {name} --out {data}")
    settings = ["--data.loader", "memory", "--data.directory", str(data), "--runs", str(runs), "--offline"]
    commands = [[sys.executable, *SEARCH[on_gpu], *settings, "--sgd-seed", seed] for seed in ("1", "2")]
    logs = [directory / f"search-{seed}.log" for seed in (1, 2)]
    own = {"PYTHONPATH": str(ROOT)} | ({} if on_gpu else {"OMP_NUM_THREADS": "1"})
    codes, took = _run(commands, logs, own, seconds - SAVING_SECONDS, SAVING_SECONDS)
    records = [json.loads(path.read_text()) for path in sorted(runs.glob("level-*/record.json"))]
    rows = [Row("levels", len(records))]
    for record in records:
        metrics = {name: value for name, value, *_ in record["metrics"]}
        which = f"seed {record['config']['search']['sgd_seed']}, level {record['config']['level']}"
        rows.append(Row(f"{which} [test error %]", metrics["test_error_percent"]))
        rows.append(Row(f"{which} [images/s]", metrics["images_per_second"]))
    broken = [log for code, log in zip(codes, logs, strict=True) if code]
    detail = (broken[0].read_text().splitlines() or ["?"])[-1][-200:] if broken else ""
    if None in codes:
        return Outcome("searches", "stopped", "the same command goes on with them", tuple(rows), took)
    return Outcome("searches", "failed" if broken else "done", detail, tuple(rows), took)


def _run(
    commands: list[list[str]], logs: list[Path], own: dict[str, str], seconds: float, grace: float
) -> tuple[list[int | None], float]:
    """Run commands at once; return their exit codes, None of those that were told to stop, and the time they took."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    started, processes, codes = time.monotonic(), [], list[int | None]()
    try:
        for command, log in zip(commands, logs, strict=True):
            settings: dict[str, Any] = {"cwd": ROOT, "env": inherited | own, "start_new_session": True}
            with log.open("wb") as output:
                processes.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, **settings))
        for until in (started + seconds, started + seconds + grace):
            while any(process.poll() is None for process in processes) and time.monotonic() < until:
                time.sleep(0.1)
            codes = codes or [process.poll() for process in processes]
            for process in processes:
                process.send_signal(signal.SIGTERM)  # none to one that has ended
    finally:
        for process in processes:
            kill(process.pid)
            process.wait(5)
    return codes, time.monotonic() - started
