"""Launch recipes and tools as a user does, and read their runs.

Most scripts run "warm": in a fork of a process that has already imported the libraries.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.warm import warm

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCH = [str(Path(sys.executable).with_name("accelerate")), "launch", "-q", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"]
TINY = ["--model.name", "resnet8", "--model.width", "4", "--warmup-epochs", "2", "--level-epochs", "1"]
TINY += ["--final.epochs", "2", "--num-levels", "2"]
EMPTY_STORE = "empty.db"
"""File name of an empty MLflow database, stored next to the prepared data."""
LIGHT = ["--data.loader", "memory"]  # avoids the start-up time of FFCV


def run(where: Path, *command: str, ok: bool = True, **environment: str) -> str:
    """Run a command in the directory `where` and check its exit status.

    Args:
        ok: Expect success; otherwise expect a failure.

    Returns:
        Standard output after success, standard error after an expected failure.
    """
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, cwd=where, env=env, capture_output=True, text=True, timeout=900)
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout if ok else done.stderr


def run_warm(where: Path, script: str, *options: str, ok: bool = True, **environment: str) -> str:
    """Run a script in a warm Python; otherwise the same as `run`."""
    done = warm(where, script, *options, **{"OMP_NUM_THREADS": "1", **environment})
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout if ok else done.stderr


def recipe(where: Path, name: str, *options: str, processes: int = 0, ok: bool = True, **environment: str) -> str:
    """Launch a recipe and return its output, as `run` does.

    Args:
        processes: 0 runs it in one warm Python process, without a launcher. 1 uses a cold `accelerate launch`, as a
            user does. More use a warm `accelerate launch` with warm workers.
    """
    script = str(REPOSITORY / "recipes" / name)
    if not processes:
        return run_warm(where, script, *options, ok=ok, **environment)
    command = [*LAUNCH, "--num_processes", str(processes)]
    if processes == 1:
        return run(where, *command, script, *options, ok=ok, **environment)
    command += ["--multi_gpu", "--main_process_port", "0", script]
    return run_warm(where, *command, *options, ok=ok, **{"ACCELERATE_USE_CPU": "true", **environment})


def tool(where: Path, name: str, *options: str, ok: bool = True, cold: bool = False) -> str:
    """Run a tool and return its output, as `run` does.

    With `cold`, start a new Python, as a user does.
    """
    script = str(REPOSITORY / "tools" / name)
    return run(where, sys.executable, script, *options, ok=ok) if cold else run_warm(where, script, *options, ok=ok)


def nodes(where: Path, kind: str) -> dict[str, dict]:
    """Return the records of all local runs of a kind, by name."""
    records = [json.loads(path.read_text()) for path in (where / "runs").glob(f"{kind}-*/record.json")]
    return {record["name"]: record for record in records}


def run_ids(output: str) -> list[str]:
    """Return the MLflow run IDs of the levels from a recipe's output."""
    return re.findall(r"^\s+\d+\s+[\d.]+\s+[\d.]+\s+([0-9a-f]{32})$", output, re.M)


def elsewhere(prepared: Path, tmp_path: Path, *, tables: bool = True) -> Path:
    """Prepare `tmp_path` as a working directory with data and no runs.

    Args:
        tables: Copy an empty MLflow database into it, because creating the tables takes seconds.
    """
    tmp_path.mkdir(exist_ok=True)
    data = (prepared / "data").resolve()
    (tmp_path / "data").symlink_to(data)
    if tables and (data.parent / EMPTY_STORE).exists():
        shutil.copy(data.parent / EMPTY_STORE, tmp_path / "mlflow.db")
    return tmp_path
