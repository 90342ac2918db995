"""Run every test and benchmark that needs a GPU within a time limit: the most important first.

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
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # run as a script
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from harness.common.files import write_atomically  # noqa: E402
from tools.benchmarks.launched import run_searches, run_tests  # noqa: E402
from tools.benchmarks.measure import Goal, number, table  # noqa: E402
from tools.benchmarks.worker import Outcome, ask  # noqa: E402

SHARES = {
    "tests": 0.5,
    "checkpoints": 0.15,
    "waits": 0.2,
    "steps": 0.4,
    "ddp": 0.2,
    "decoding": 0.15,
    "compiled": 0.6,
    "small": 0.6,
    "barrier": 0.3,
    "searches": 1.0,
}
"""The parts in order of worth, and their share of the whole budget, at most."""
START_SHARE, GRACE_SECONDS, ENDING_SECONDS = 0.4, 10.0, 1.0
"""Until it is known on what it runs; after a part should have stopped; for Python's own beginning and end."""
GOALS = {
    ("tests", "failed tests"): Goal(most=0),
    ("tests", "tests without a result"): Goal(most=0),
    ("checkpoints", "images apart from the CPU"): Goal(most=2),
    ("waits", "waits"): Goal(most=0),
    ("steps", "aws, batch 256 [images/s]"): Goal(least=4000),
    ("steps", "aws, batch 32 [images/s]"): Goal(least=3500),
    **{("steps", f"aws / plain, batch {batch}"): Goal(least=0.98) for batch in (256, 128, 64, 32)},
    ("compiled", "aws, reduce-overhead, batch 32 [images/s]"): Goal(least=3500),
    ("compiled", "aws / plain, reduce-overhead, batch 32"): Goal(least=0.98),
    ("compiled", "graphs compiled anew, reduce-overhead, batch 32"): Goal(most=0),
    ("compiled", "aws, default, batch 256 [images/s]"): Goal(least=5500),
    ("compiled", "aws / plain, default, batch 256"): Goal(least=0.98),
    ("compiled", "graphs compiled anew, default, batch 256"): Goal(most=0),
    ("small", "aws by CUDA graphs / published way, resnet20"): Goal(least=5),
    ("small", "aws by CUDA graphs / published way, mobilenet_v2_cifar"): Goal(least=5),
    ("barrier", "ours / plain"): Goal(least=1),
}
"""What measured values should be on one H200, in bf16."""


def judged(outcomes: Sequence[Outcome], on_gpu: bool) -> list[dict[str, Any]]:
    """Hold the goals against what was measured; a run on the CPU measures none of them."""
    values = {(one.part, row.name): row.value for one in outcomes for row in one.rows if on_gpu}
    rows = [(part, name, goal, values.get((part, name))) for (part, name), goal in GOALS.items()]
    keys = ("verdict", "part", "value", "goal", "measured")
    return [dict(zip(keys, (g.verdict(v), part, name, str(g), v), strict=True)) for part, name, g, v in rows]


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line; by argparse, since a GPU machine may lack tyro."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=budget, default=270.0, help="budget, start included (270)")
    parser.add_argument("--only", nargs="+", choices=SHARES, default=list(SHARES), help="these parts, in their order")
    parser.add_argument("--json", type=Path, help="write all that was measured here, anew after each part")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where the prepared Fashion-MNIST is")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/sitting"), help="where searches are kept, and continued"
    )
    parser.add_argument("--logs", type=Path, help="keep the output of tests, parts and searches in this folder")
    return parser.parse_args(words)


def budget(text: str) -> float:
    """Read a number of seconds."""
    if not 0 < (seconds := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} seconds: give a finite number above 0")
    return seconds


def main(arguments: argparse.Namespace) -> int:
    """Run the parts; 0 if the device could be used, and each part that ran was done or stopped by the clock."""
    ends = time.monotonic() + arguments.seconds - ENDING_SECONDS
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit("stopped"))  # so that what was started is ended
    with suppress(ImportError):  # once, and without touching the device; each part is forked from here
        import harness.training.loop  # noqa: F401
    outcomes: list[Outcome] = []
    with TemporaryDirectory() as temporary:
        directory = (arguments.logs or Path(temporary)).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        log = directory / "parts.log"
        first = ask("about", arguments.seconds, START_SHARE * arguments.seconds, log)
        head: dict[str, Any] = {"hardware": f"unknown: {first.detail}"}
        head = head if not first.rows else {**first.rows[0]}  # type: ignore[dict-item]
        on_gpu = head.pop("on_gpu", Path("/dev/nvidiactl").exists())
        head |= {"command": shlex.join(["python", *sys.argv]), "budget": f"{arguments.seconds:g} s"}
        print(table([[name, value] for name, value in head.items()]))
        print("" if on_gpu else "cpu: tries the code, not the speed", flush=True)
        for part in (part for part in SHARES if part in arguments.only):
            left = ends - time.monotonic()
            seconds = min(SHARES[part] * arguments.seconds, left)
            if left <= 0:
                outcome = Outcome(part, "not run", f"the budget of {arguments.seconds:g} s was over")
            elif part == "tests":
                outcome = run_tests(directory, seconds, on_gpu)
            elif part == "searches":
                runs = arguments.runs if on_gpu else directory / "runs"
                outcome = run_searches(directory, runs.resolve(), arguments.data.resolve(), seconds, on_gpu)
            elif first.status != "done":
                outcome = Outcome(part, "not run", first.detail)
            else:
                outcome = ask(part, seconds, min(seconds + GRACE_SECONDS, left), log)
            outcomes.append(outcome)
            print(outcome, flush=True)
            if arguments.json is not None:
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                result = {"about": head, "parts": list(map(asdict, outcomes)), "goals": judged(outcomes, on_gpu)}
                text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
                write_atomically(arguments.json, text.encode(), durable=False)  # the sitting may be killed meanwhile
    goals = judged(outcomes, on_gpu)
    print("\n" + table([[*map(str, list(goal.values())[:-1]), number(goal["measured"])] for goal in goals]))
    broken = any(outcome.status in ("failed", "crashed") for outcome in (first, *outcomes))
    return 1 if broken or first.status != "done" else 0


if __name__ == "__main__":
    try:
        sys.exit(main(parse(sys.argv[1:])))
    except KeyboardInterrupt:
        sys.exit("interrupted")
