"""Part "searches": two searches at once, for as long as time is left; a later sitting goes on where they stopped."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tools.benchmarks.device.asking import kill
from tools.benchmarks.device.parts import Finding, Outcome

ROOT = Path(__file__).resolve().parents[3]
SEEDS = (1, 2)
SAVING_SECONDS = 8.0
"""From the signal to stop until a search has saved its state."""
ON_GPU = ("recipes/aws_fashion_mnist.py", "--precision", "bf16", "--checkpoint-every", "0.5")
ON_CPU = ("recipes/aws_digits.py", "--num-levels", "1", "--warmup-epochs", "1", "--level-epochs", "1")


def run_searches(directory: Path, runs: Path, data: Path, seconds: float, on_gpu: bool) -> Outcome:
    """Search with two seeds of u at once for at most `seconds`; finished levels lie in `runs`."""
    started = time.monotonic()
    missing = [name for name in ("tyro", "tqdm") if importlib.util.find_spec(name) is None]
    if missing:
        return Outcome("searches", "not run", f"needs {', '.join(missing)}")
    name = "fashion_mnist" if on_gpu else "digits"
    if not (data / name / "train.safetensors").is_file():
        return Outcome("searches", "not run", f"needs {data / name}: python tools/prepare_data.py {name} --out {data}")
    settings = ["--data.loader", "memory", "--data.directory", str(data), "--runs", str(runs), "--offline"]
    processes, logs = [], []
    try:
        for seed in SEEDS:
            command = [sys.executable, *(ON_GPU if on_gpu else ON_CPU), *settings, "--sgd-seed", str(seed)]
            logs.append(directory / f"search-{seed}.log")
            with logs[-1].open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        command,
                        cwd=ROOT,
                        env=os.environ | {"PYTHONPATH": str(ROOT)} | ({} if on_gpu else {"OMP_NUM_THREADS": "1"}),
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        stopped = _wait(processes, started + seconds - SAVING_SECONDS)
        for process in processes:
            process.send_signal(signal.SIGTERM)  # none to one that has ended
        _wait(processes, started + seconds)
    finally:
        codes = [process.poll() for process in processes]
        for process in processes:
            kill(process)
    findings, elapsed = [_found(runs, elapsed := time.monotonic() - started)], elapsed
    if stopped:
        return Outcome("searches", "stopped", "the same command goes on with them", findings, elapsed)
    broken = [log for code, log in zip(codes, logs, strict=True) if code != 0]
    if broken:
        return Outcome(
            "searches", "failed", (broken[0].read_text().splitlines() or ["?"])[-1][-200:], findings, elapsed
        )
    return Outcome("searches", "done", "", findings, elapsed)


def _wait(processes: list[subprocess.Popen[Any]], until: float) -> bool:
    """Wait for all; whether some are still running then."""
    while any(process.poll() is None for process in processes):
        if time.monotonic() > until:
            return True
        time.sleep(0.1)
    return False


def _found(runs: Path, seconds: float) -> Finding:
    """Read finished levels from their records."""
    records = [json.loads(path.read_text()) for path in sorted(runs.glob("level-*/record.json"))]
    levels = sorted((record["config"]["search"]["sgd_seed"], record["config"]["level"], record) for record in records)
    text, values = [], {"levels": float(len(levels))}
    for seed, level, record in levels:
        metrics = {name: value for name, value, *_ in record["metrics"]}
        error, rate = metrics["test_error_percent"], metrics["images_per_second"]
        values |= {f"seed {seed}, level {level} [test error %]": error, f"seed {seed}, level {level} [images/s]": rate}
        text.append(f"seed {seed} L{level:02d} {error:.2f} % at {rate:,.0f} images/s")
    return Finding(f"{len(levels)} levels in {runs}: {', '.join(text)}", values)
