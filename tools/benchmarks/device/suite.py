"""Part "tests": `tests/gpu` shared out over several pytest processes, which needs no plugin package.

This file is the pytest plugin, too (`-p tools.benchmarks.device.suite`). It keeps one share of the tests, and writes a
line for each beginning and end: a process that crashes or hangs takes only the test with it that it was at. A process
whose device reports an error ends, since every later test in it would fail, and another one goes on with the rest.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.benchmarks.device.asking import ended_by, kill
from tools.benchmarks.device.parts import Finding, Outcome, Status

ROOT = Path(__file__).resolve().parents[3]
ON_CPU = ("tests/gpu/test_masks_on_gpu.py", "tests/gpu/test_data_on_gpu.py")
"""Enough to try the code; all of them take minutes on a CPU."""
DEVICE_ERROR = 70
_SHARE = "SITTING_SHARE"  # index, number of shares, and the file that the plugin writes


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Keep this share's tests that have not begun in an earlier process."""
    index, number, path = _share()
    begun = {line["test"] for line in _lines(path)}
    items[:] = [item for item in items[index::number] if item.nodeid not in begun]


def pytest_runtest_logstart(nodeid: str, location: Any) -> None:
    """Write that a test begins."""
    _write(test=nodeid)


def pytest_runtest_logreport(report: Any) -> None:
    """Write how a test ended; leave a process whose device is lost."""
    if report.when == "call" or report.outcome != "passed":
        _write(test=report.nodeid, outcome=report.outcome, error=str(report.longrepr or "")[-2000:])
    if report.failed and "CUDA error" in str(report.longrepr):
        os._exit(DEVICE_ERROR)


def _share() -> tuple[int, int, Path]:
    index, number, path = json.loads(os.environ[_SHARE])
    return index, number, Path(path)


def _write(**line: str) -> None:
    with _share()[2].open("a") as file:
        file.write(json.dumps(line) + "\n")


def _lines(path: Path) -> Iterator[dict[str, str]]:
    if path.exists():
        yield from (json.loads(line) for line in path.read_text().splitlines())


@dataclass
class _Share:
    """One process at a time, and what its tests gave."""

    index: int
    number: int
    directory: Path
    tests: Sequence[str]
    on_gpu: bool
    process: subprocess.Popen[bytes] | None = None
    endings: list[str] = field(default_factory=list)
    """How processes ended that did not run all their tests."""
    begun: int = 0
    """Tests begun when the last of them ended."""

    @property
    def path(self) -> Path:
        return self.directory / f"tests-{self.index}.jsonl"

    def start(self) -> None:
        environment = os.environ | {_SHARE: json.dumps([self.index, self.number, str(self.path)])}
        if not self.on_gpu:
            environment["HARNESS_GPU_TESTS_DEVICE"] = "cpu"
        plugins = ["-p", "tools.benchmarks.device.suite", "-p", "no:cacheprovider"]
        with (self.directory / f"tests-{self.index}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pytest", "-q", *plugins, *self.tests],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ended(self) -> bool:
        """Whether all is done; after a crash another process goes on, unless it could not even begin."""
        assert self.process is not None
        code = self.process.poll()
        if code is None:
            return False
        if code in (0, 1, 5):  # all passed, some failed, none left
            return True
        self.endings.append(ended_by(code))
        begun, self.begun = self.begun, len(self.results())
        if self.begun == begun:
            return True
        self.start()
        return False

    def results(self) -> dict[str, str]:
        """Outcome by test; "begun" for one that has none."""
        found: dict[str, str] = {}
        for line in _lines(self.path):
            outcome, before = line.get("outcome", "begun"), found.get(line["test"], "begun")
            if before == "begun" or outcome == "failed":
                found[line["test"]] = outcome
        return found


def run_tests(directory: Path, seconds: float, on_gpu: bool, tests: Sequence[str] = ()) -> Outcome:
    """Run the suite for at most `seconds`; `directory` gets the logs."""
    started = time.monotonic()
    if importlib.util.find_spec("pytest") is None:
        return Outcome("tests", "not run", "needs pytest")
    number = min(8, len(os.sched_getaffinity(0))) if on_gpu else 1
    asked = tests or (("tests/gpu",) if on_gpu else ON_CPU)
    shares = [_Share(index, number, directory, asked, on_gpu) for index in range(number)]
    try:
        for share in shares:
            share.start()
        running = shares
        while running and time.monotonic() < started + seconds:
            time.sleep(0.1)
            running = [share for share in running if not share.ended()]
        return _outcome(shares, bool(running), time.monotonic() - started)
    finally:
        for share in shares:
            if share.process is not None:
                kill(share.process)


def _outcome(shares: Sequence[_Share], stopped: bool, seconds: float) -> Outcome:
    results = {test: outcome for share in shares for test, outcome in share.results().items()}
    endings = [ending for share in shares for ending in share.endings]
    count = {kind: sum(outcome == kind for outcome in results.values()) for kind in ("passed", "failed", "skipped")}
    lost = [test for test, outcome in results.items() if outcome == "begun"]
    failed = [test for test, outcome in results.items() if outcome == "failed"]
    text = f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped"
    text += f", {len(lost)} without a result, on {len(shares)} processes"
    text += "".join(
        f"; {kind} {_short(test)}" for kind, tests in (("FAILED", failed), ("LOST", lost)) for test in tests
    )
    values: dict[str, float] = {"failed tests": count["failed"], "tests without a result": len(lost)}
    if stopped or not count["passed"]:  # then 0 says nothing
        values = {name: number for name, number in values.items() if number}
    finding = Finding(text, {"passed tests": count["passed"], "skipped tests": count["skipped"]} | values)
    if not results:
        return Outcome("tests", "failed", f"no test began ({', '.join(endings) or 'too slow'})", (), seconds)
    status: Status = "stopped" if stopped else "failed" if failed else "crashed" if lost else "done"
    detail = "its time was over; the rest did not run" if stopped else ", ".join(endings)
    return Outcome("tests", status, detail, [finding], seconds)


def _short(test: str) -> str:
    return test.removeprefix("tests/gpu/")
