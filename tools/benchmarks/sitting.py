"""Run every test and benchmark that needs a GPU within a time limit: the most important first, one line for each.

python tools/benchmarks/sitting.py --seconds 270 --json sitting.json

No part stops the next. A part that is not done when its share of the time is over is stopped, and keeps its results.
Needs PyTorch, NumPy and safetensors. Another package that is missing costs only its own rows. Without a GPU every part
runs at a tiny size: that tries the code, not the speed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # instead of this folder, whose files are modules of tools.benchmarks
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from tools.benchmarks.device.asking import GRACE_SECONDS, WorkerProcess  # noqa: E402
from tools.benchmarks.device.parts import NAMES, PARTS, Name, Outcome, Part, judged  # noqa: E402
from tools.benchmarks.device.searches import run_searches  # noqa: E402
from tools.benchmarks.device.suite import run_tests  # noqa: E402

START_SHARE = 0.4
"""Of the budget, at most, until the process of the parts has said on what it runs."""
ENDING_SECONDS = 1.0
"""Of the budget, for Python's own beginning and end."""


@dataclass(frozen=True)
class SittingOptions:
    """How long, which parts, and where results go."""

    seconds: float = 270
    only: tuple[Name, ...] = NAMES
    json: Path | None = None
    data: Path = Path("data")
    runs: Path = Path("runs/sitting")
    logs: Path | None = None


def parse(words: Sequence[str]) -> SittingOptions:
    """Read the command line; by argparse, since a GPU machine may lack tyro."""
    own = SittingOptions()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=_seconds, default=own.seconds, help="budget, start included (270)")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=own.only, help="these parts, in their usual order")
    parser.add_argument("--json", type=Path, help="write all that was measured here, anew after each part")
    parser.add_argument("--data", type=Path, default=own.data, help="where tools/prepare_data.py put Fashion-MNIST")
    parser.add_argument("--runs", type=Path, default=own.runs, help="where searches are kept, and continued")
    parser.add_argument("--logs", type=Path, help="keep the output of tests, parts and searches in this folder")
    given = vars(parser.parse_args(words))
    return SittingOptions(**given | {"only": tuple(given["only"])})


def _seconds(text: str) -> float:
    """Read a number of seconds; argparse makes an error of a ValueError."""
    if not 0 < (seconds := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} seconds: give a finite number above 0")
    return seconds


@dataclass
class Sitting:
    """The clock, the machine and the outcomes until now."""

    arguments: SittingOptions
    worker: WorkerProcess
    directory: Path
    ends: float
    about: dict[str, Any] = field(default_factory=dict)
    on_gpu: bool = Path("/dev/nvidiactl").exists()
    """Until the process of the parts says so: whether there is a driver."""
    begun: bool = False
    """Whether the process of the parts started."""
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return self.ends - time.monotonic()

    def begin(self) -> None:
        """Start the process of the parts, which finds out on what it runs; without it the tests still run."""
        started = time.monotonic()
        try:
            first = self.worker.start(START_SHARE * self.arguments.seconds)
            self.about, self.on_gpu, self.begun = first["about"], first["device"] == "cuda", True
        except OSError as error:
            self.about = {"hardware": f"unknown: {error}"}
        self.about |= {
            "command": shlex.join(["python", *sys.argv]),
            "budget": f"{self.arguments.seconds:g} s, of which {time.monotonic() - started:.0f} s to start",
        }
        print("\n".join(f"{name:9} {value}" for name, value in self.about.items()))
        if not self.on_gpu:
            print("cpu: tries the code, not the speed")

    def run(self, part: Part) -> Outcome:
        """Run one part within its share of the budget."""
        if self.left <= 0:
            return Outcome(part.name, "not run", f"the budget of {self.arguments.seconds:g} s was over")
        seconds = min(part.share * self.arguments.seconds, self.left)
        if part.name == "tests":
            return run_tests(self.directory, seconds, self.on_gpu)
        if part.name == "searches":
            runs = self.arguments.runs if self.on_gpu else self.directory / "runs"
            return run_searches(self.directory, runs.resolve(), self.arguments.data.resolve(), seconds, self.on_gpu)
        return self.worker.ask(part.name, seconds, min(seconds + GRACE_SECONDS, self.left))

    def add(self, outcome: Outcome) -> None:
        """Print a part's line and write the file."""
        self.outcomes.append(outcome)
        print(outcome, flush=True)
        if self.arguments.json is not None:
            parts = [
                {
                    "part": one.part,
                    "status": one.status,
                    "detail": one.detail,
                    "seconds": round(one.seconds, 1),
                    "found": [finding.text for finding in one.findings],
                    "values": one.values,
                }
                for one in self.outcomes
            ]
            result = {"about": self.about, "parts": parts, "goals": judged(self.outcomes, self.on_gpu)}
            _write(self.arguments.json, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    """Write whole or not at all: the sitting may be killed meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def goals_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the goals as lines: verdict, part, value, bound, measured."""

    def number(measured: float | None) -> str:
        return "–" if measured is None else f"{measured:,.4g}" if measured < 1000 else f"{measured:,.0f}"

    return "\n".join(
        f"{row['verdict']:13}{row['part']:12}{row['value']:54}{row['goal']:>8}  {number(row['measured'])}"
        for row in rows
    )


def main(arguments: SittingOptions) -> int:
    """Run the parts; 0 if their process started, and each that ran was done or stopped by the clock."""
    ends = time.monotonic() + arguments.seconds - ENDING_SECONDS
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit("stopped"))  # so that what was started is ended
    with TemporaryDirectory() as temporary:
        directory = (arguments.logs or Path(temporary)).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "tools.benchmarks.device.worker"]
        worker = WorkerProcess(command, ROOT, directory / "worker.log")
        sitting = Sitting(arguments, worker, directory, ends)
        try:
            sitting.begin()
            for part in PARTS:
                if part.name in arguments.only:
                    sitting.add(sitting.run(part))
        finally:
            worker.kill()
    print("\n" + goals_table(judged(sitting.outcomes, sitting.on_gpu)))
    broken = any(outcome.status in ("failed", "crashed") for outcome in sitting.outcomes)
    return 1 if broken or not sitting.begun else 0


if __name__ == "__main__":
    try:
        sys.exit(main(parse(sys.argv[1:])))
    except KeyboardInterrupt:
        sys.exit("interrupted")
