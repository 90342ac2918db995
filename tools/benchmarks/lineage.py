"""What lineage costs: beside the work of a level, from a run ID to a signed mask, and to verify a search."""

from __future__ import annotations

import contextlib
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import harness.cli.launch  # noqa: F401  # with all that a search calls
from harness.lineage.nodes.local_files import LocalNodes
from harness.lineage.nodes.record import LineageRecord
from harness.lineage.reload import load_signed_mask
from harness.lineage.store import LineageStore, open_store
from harness.training.batchnorm import reestimate_batchnorm
from harness.training.evaluate import evaluate
from harness.training.loop import train
from tools.benchmarks.measure import Goal, Row, seconds

ROOT = Path(__file__).resolve().parents[2]
RESNET50 = "--model.name resnet50 --data.loader memory --global-batch-size 1024 --warmup-epochs 1 --level-epochs 1"
"""A step on digits of 8×8 for each level: networks, masks and files have the full size."""
VERIFY = """
import sys, time
from harness.lineage.proof import verify
from harness.lineage.store import open_store
def kib(name):
    return int(next(line.split()[1] for line in open("/proc/self/status") if name in line))
before, started = kib("VmRSS"), time.perf_counter()
findings = verify(open_store(sys.argv[1], offline=True))
seconds = time.perf_counter() - started
assert not findings.problems, findings.problems
print(seconds, sum(findings.checked.values()), findings.num_bytes, (kib("VmHWM") - before) / 1024)
"""


def run(directory: str, *words: str) -> str:
    """Run a command of this repository in a directory and return its output."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *words], cwd=directory, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout


def searched(directory: str, levels: int) -> None:
    """Search on digits with ResNet-50."""
    run(directory, str(ROOT / "tools/prepare_data.py"), "digits", "--out", "data")
    run(directory, str(ROOT / "recipes/aws_digits.py"), *RESNET50.split(), "--num-levels", str(levels), "--offline")


def verify(quick: bool) -> Iterator[Row]:
    """Time `verify` of a search of ResNet-50 with ten levels on local storage, and count its memory."""
    levels = 1 if quick else 10
    with tempfile.TemporaryDirectory() as directory:
        searched(directory, levels)
        took, checks, size, mib = map(float, run(directory, "-c", VERIFY, "runs").split())
    note = f"{checks:.0f} checks, {size / 1e9:.2f} GB hashed, {mib:,.0f} MiB of memory above the imports'"
    yield Row(f"verify a search, ResNet-50, {levels} levels, local [s]", took, Goal(most=60), note)


def reload(quick: bool) -> Iterator[Row]:
    """Time `load_signed_mask` of a ResNet-50 from a local SQLite store, without local nodes.

    The clock starts after the imports and one tracking call, which opens the database. The first load is what a person
    waits for, so it has to reach the goal too.
    """
    with tempfile.TemporaryDirectory() as directory:
        searched(directory, 1 if quick else 10)
        uri, nowhere = f"sqlite:///{directory}/mlflow.db", Path(directory, "none")
        store = open_store(Path(directory, "runs"), uri, "benchmark")
        level = max(store.local.directory.glob("level-*"), key=os.path.getmtime)
        run_id = store.deliver(level)
        open_store(nowhere, uri).run_id_of("0" * 64)
        took = [seconds(lambda: load_signed_mask(run_id, uri, nowhere)) for _ in range(3 if quick else 15)]
        density = load_signed_mask(run_id, uri, nowhere).density
    note = f"{len(took)} loads, the first {took[0]:.3f} s; density {density:.3f}; held: the first or the median"
    value = max(took[0], median(took))
    yield Row(
        "load_signed_mask(run_id), ResNet-50, local store [s]", value, Goal(most=0.3), note, (min(took), max(took))
    )


def level_overhead(quick: bool) -> Iterator[Row]:
    """Compare all that a level does beside its work, which is training, evaluation and BatchNorm, with its wall time.

    A real search with two levels of one epoch, the worst case, from the end of the search's own run to the end of the
    launch. Logging between epochs is no work. Delivery is added in full, though a thread does it beside the next level.
    The first delivery, which loads MLflow and makes its database, comes before.
    """
    data = "digits" if quick else "fashion_mnist"
    begun, spent = list[float](), dict.fromkeys(("work", "logging", "committing", "delivery"), 0.0)

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if "on_epoch" in kwargs:
                kwargs["on_epoch"] = timed("logging", kwargs["on_epoch"])
            started = time.perf_counter()
            found = function(*args, **kwargs)
            if begun:
                spent[part] += time.perf_counter() - started
            elif part == "committing":
                begun.append(time.perf_counter())
            return found

        return call

    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        run(directory, str(ROOT / "tools/prepare_data.py"), data, "--out", "data")
        words = "--num-levels 1 --warmup-epochs 1 --level-epochs 1 --data.loader memory --model.name resnet20"
        stack.enter_context(contextlib.chdir(directory))
        stack.enter_context(patch.object(sys, "argv", [f"aws_{data}.py", *words.split()]))
        stack.enter_context(patch.dict(os.environ, MLFLOW_TRACKING_URI=f"sqlite:///{directory}/mlflow.db"))
        # One delivery before: it loads MLflow and makes the database.
        nodes, first = LocalNodes(Path(directory, "before")), LineageRecord("0" * 64, "level", "before")
        nodes.commit(first, lambda path: None)
        open_store(nodes.directory, os.environ["MLFLOW_TRACKING_URI"]).deliver(nodes.path(first))
        stack.enter_context(patch.object(LocalNodes, "commit", timed("committing", LocalNodes.commit)))
        stack.enter_context(patch.object(LineageStore, "deliver", timed("delivery", LineageStore.deliver)))
        for module in [module for name, module in sys.modules.items() if name.startswith("harness.")]:
            for name, value in list(vars(module).items()):
                if value in (train, evaluate, reestimate_batchnorm):
                    stack.enter_context(patch.object(module, name, timed("work", value)))
        runpy.run_path(str(ROOT / f"recipes/aws_{data}.py"), run_name="__main__")
        wall = time.perf_counter() - begun[0]
    overhead = wall - spent["work"] + spent["logging"] + spent["delivery"]
    note = ", ".join(f"{part} {took:.3f} s" for part, took in spent.items()) + f" of {wall:.1f} s for two levels"
    name = f"overhead / wall time of a level, {data}, ResNet-20, 1 epoch [s]"
    yield Row(name, overhead / wall, Goal(most=0.02), note, ours=overhead / 2, reference=wall / 2)
