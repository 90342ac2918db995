"""The process in which parts run: `python -m tools.benchmarks.device.worker`; see `asking.WorkerProcess`.

Each line of standard input asks for a part. Standard output carries the answers alone; all else goes to standard error.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, TextIO

import torch

from harness.distributed.world import World
from tools.benchmarks.about import about
from tools.benchmarks.device.parts import Finding

HOMES = {
    "checkpoints": "correctness",
    "waits": "correctness",
    "steps": "rates",
    "ddp": "rates",
    "compiled": "rates",
    "small": "rates",
    "decoding": "decoding",
    "barrier": "barrier",
}
"""File of this folder that holds the function of a part, which has the part's name."""
MeasurePart = Callable[[World], Iterator[Finding]]


def measure(part: str) -> MeasurePart:
    """Return the function that runs a part."""
    function: MeasurePart = getattr(importlib.import_module(f"tools.benchmarks.device.{HOMES[part]}"), part)
    return function


def run(part: str, world: World, seconds: float, send: Callable[[Finding], None]) -> tuple[str, str]:
    """Run a part, `send` its findings, and return how it ended: status and detail."""
    stop_at = time.monotonic() + seconds
    try:
        with closing(measure(part)(world)) as findings:  # type: ignore[type-var]
            for finding in findings:
                send(finding)
                if time.monotonic() > stop_at:
                    return "stopped", "its time was over"
    except ModuleNotFoundError as error:
        return "not run", f"needs {(error.name or str(error)).split('.')[0]}"
    except Exception as error:
        traceback.print_exc()
        where = traceback.extract_tb(error.__traceback__)[-1]
        words = (str(error).splitlines() or [""])[0][:200]
        return "failed", f"{type(error).__name__}: {words} at {os.path.basename(where.filename)}:{where.lineno}"
    return "done", ""


def clean_up() -> None:
    """Leave nothing of a part to the next one."""
    torch.backends.cudnn.benchmark = False
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main(answers: TextIO) -> None:
    """Describe the machine, then run every part asked for."""

    def answer(**line: Any) -> None:
        print(json.dumps(line), file=answers, flush=True)

    world = World("bf16")
    if world.device.type == "cpu":
        torch.set_num_threads(1)  # the networks are too small to share out
    torch.ones(1, device=world.device).sum().item()  # a device that does not work shows now
    answer(device=world.device.type, about=about())
    for line in sys.stdin:
        asked = json.loads(line)

        def send(finding: Finding) -> None:
            answer(text=finding.text, values=dict(finding.values))

        status, detail = run(asked["part"], world, asked["seconds"], send)
        clean_up()
        answer(status=status, detail=detail)
    world.close()


if __name__ == "__main__":
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print there, too
    main(answers)
