"""Time what lineage adds to a level, the way from a run ID to a signed mask, and `verify` of a search."""

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
from harness.lineage import proof
from harness.lineage.nodes.local_files import LocalNodes
from harness.lineage.nodes.record import LineageRecord
from harness.lineage.proof import Findings
from harness.lineage.reload import load_signed_mask
from harness.lineage.store import LineageStore, open_store
from harness.training.batchnorm import reestimate_batchnorm
from harness.training.evaluate import evaluate
from harness.training.loop import train
from tools.benchmarks.measure import ROOT, Goal, Row, seconds

ONE_EPOCH = ("--data.loader", "memory", "--warmup-epochs", "1", "--level-epochs", "1", "--num-levels")


def run(directory: str, *words: str) -> str:
    """Run a command of this repository in a directory and return its output."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *words], cwd=directory, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout


@contextlib.contextmanager
def searched(levels: int) -> Iterator[str]:
    """Search with ResNet-50; networks, masks and files have the full size, a level is a step on digits of 8×8."""
    with tempfile.TemporaryDirectory() as directory:
        run(directory, str(ROOT / "tools/prepare_data.py"), "digits", "--out", "data")
        words = [*ONE_EPOCH, str(levels), "--model.name", "resnet50", "--global-batch-size", "1024", "--offline"]
        run(directory, str(ROOT / "recipes/aws_digits.py"), *words)
        yield directory


def verify(quick: bool) -> Iterator[Row]:
    """Time `verify` of a search of ResNet-50 with ten levels on local storage."""
    levels, found = 1 if quick else 10, list[Findings]()
    with searched(levels) as directory:
        store = open_store(Path(directory, "runs"), offline=True)
        took = seconds(lambda: found.append(proof.verify(store)))
    if found[0].problems:
        raise RuntimeError(str(found[0].problems))
    note = f"{sum(found[0].checked.values())} checks, {found[0].num_bytes / 1e9:.2f} GB hashed"
    yield Row(f"verify a search, ResNet-50, {levels} levels, local [s]", took, Goal(most=60), note)


def reload(quick: bool) -> Iterator[Row]:
    """Time `load_signed_mask` of a ResNet-50 from a local SQLite store, without local nodes.

    The clock starts after the imports and one tracking call, which opens the database. The first load is what a person
    waits for, so it has to reach the goal too.
    """
    with searched(1 if quick else 10) as directory:
        uri, nowhere = f"sqlite:///{directory}/mlflow.db", Path(directory, "none")
        store = open_store(Path(directory, "runs"), uri, "benchmark")
        run_id = store.deliver(max(store.local.directory.glob("level-*"), key=os.path.getmtime))
        open_store(nowhere, uri).run_id_of("0" * 64)
        took = [seconds(lambda: load_signed_mask(run_id, uri, nowhere)) for _ in range(3 if quick else 15)]
        density = load_signed_mask(run_id, uri, nowhere).density
    note = f"{len(took)} loads, the first {took[0]:.3f} s; density {density:.3f}; held: the first or the median"
    name, value = "load_signed_mask(run_id), ResNet-50, local store [s]", max(took[0], median(took))
    yield Row(name, value, Goal(most=0.3), note, (min(took), max(took)))


def level_overhead(quick: bool) -> Iterator[Row]:
    """Compare all that a level does beside its work, which is training, evaluation and BatchNorm, with its wall time.

    A real search with two levels of one epoch, the worst case, from the end of the search's own run to the end of the
    launch. Logging between epochs is no work. Delivery is added in full, though a thread does it beside the next level.
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
        enter, uri = stack.enter_context, f"sqlite:///{directory}/mlflow.db"
        enter(contextlib.chdir(directory))
        enter(patch.object(sys, "argv", [f"aws_{data}.py", *ONE_EPOCH, "1", "--model.name", "resnet20"]))
        enter(patch.dict(os.environ, MLFLOW_TRACKING_URI=uri))
        # one delivery before: it loads MLflow and makes the database
        nodes, first = LocalNodes(Path(directory, "before")), LineageRecord("0" * 64, "level", "before")
        nodes.commit(first, lambda path: None)
        open_store(nodes.directory, uri).deliver(nodes.path(first))
        enter(patch.object(LocalNodes, "commit", timed("committing", LocalNodes.commit)))
        enter(patch.object(LineageStore, "deliver", timed("delivery", LineageStore.deliver)))
        for module in [module for name, module in sys.modules.items() if name.startswith("harness.")]:
            for name, value in list(vars(module).items()):
                if value in (train, evaluate, reestimate_batchnorm):
                    enter(patch.object(module, name, timed("work", value)))
        runpy.run_path(str(ROOT / f"recipes/aws_{data}.py"), run_name="__main__")
        wall = time.perf_counter() - begun[0]
    overhead = wall - spent["work"] + spent["logging"] + spent["delivery"]
    note = ", ".join(f"{part} {took:.3f} s" for part, took in spent.items()) + f" of {wall:.1f} s for two levels"
    name = f"overhead / wall time of a level, {data}, ResNet-20, 1 epoch [s]"
    yield Row(name, overhead / wall, Goal(most=0.02), note, ours=overhead / 2, reference=wall / 2)
