"""Measure how much clock time `reproduce.py --jobs 2` takes, compared with `--jobs 1`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tools.benchmarks.measure import ROOT, Goal, Row

FIGURE = ("claims", "--dataset", "digits", "--trials", "2")
FULL, QUICK = ("--scale", "small"), ("--scale", "smoke", "--network", "resnet8", "--levels", "1")


def jobs(quick: bool) -> Iterator[Row]:
    """Yield the ratio of clock times of two trials of `claims` on two cores, one thread for each process.

    Every launch has a new directory of runs and a new MLflow store. Data preparation does not count.
    """
    with tempfile.TemporaryDirectory() as name:
        # Phase: prepare the data once.
        home = Path(name)
        prepare = [sys.executable, str(ROOT / "tools" / "prepare_data.py"), "digits", "--out", str(home / "data")]
        subprocess.run(prepare, check=True, stdout=subprocess.DEVNULL)

        # Phase: launch in turns, and check that both made equally many runs.
        made: dict[int, int] = {}

        def launched(number: int) -> float:
            where = Path(tempfile.mkdtemp(dir=home))
            (where / "data").symlink_to(home / "data")
            words = [*FIGURE, *(QUICK if quick else FULL), "--jobs", str(number), "--verbosity", "quiet"]
            env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            env.pop("MLFLOW_TRACKING_URI", None)
            started = time.perf_counter()
            command = [sys.executable, str(ROOT / "recipes" / "reproduce.py"), *words]
            subprocess.run(command, cwd=where, env=env, check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - started
            made[number] = len(list(where.glob("runs/*/record.json")))
            shutil.rmtree(where)
            return seconds

        one, two = launched(1), launched(2)
        assert made[1] == made[2] > 0
        note = "seconds of two trials of `claims` on digits with --jobs 2 / --jobs 1, one thread each, on idle cores"
        yield Row("jobs: clock time of 2 / 1", two / one, Goal(most=0.6), note, ours=two, reference=one)
