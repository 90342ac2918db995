"""Launch recipes and tools as a user does, and read what they left."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCH = [str(Path(sys.executable).with_name("accelerate")), "launch", "-q", "--num_machines", "1"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"]
TINY = ["--model.name", "resnet8", "--model.width", "4", "--warmup-epochs", "2", "--level-epochs", "1"]
TINY += ["--final.epochs", "2", "--num-levels", "2"]
LIGHT = ["--data.loader", "memory"]  # without the start of FFCV, where it is not the matter


def run(where: Path, *command: str, ok: bool = True, **environment: str) -> str:
    """Run a command in `where`; return both streams, after checking the exit code."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, cwd=where, env=env, capture_output=True, text=True, timeout=900)
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout if ok else done.stderr


def recipe(where: Path, name: str, *options: str, processes: int = 0, ok: bool = True, **environment: str) -> str:
    """Launch a recipe: by `accelerate launch` with that many processes, or (0) by Python alone, seconds sooner."""
    script = str(REPOSITORY / "recipes" / name)
    if not processes:
        return run(where, sys.executable, script, *options, ok=ok, **environment)
    shape = ["--num_processes", str(processes)]
    if processes > 1:
        shape += ["--multi_gpu", "--main_process_port", "0"]
        environment |= {"ACCELERATE_USE_CPU": "true"}
    return run(where, *LAUNCH, *shape, script, *options, ok=ok, **environment)


def tool(where: Path, name: str, *options: str, ok: bool = True) -> str:
    """Run a tool."""
    return run(where, sys.executable, str(REPOSITORY / "tools" / name), *options, ok=ok)


def nodes(where: Path, kind: str) -> dict[str, dict]:
    """Return record by name of the committed nodes of a kind."""
    records = [json.loads(path.read_text()) for path in (where / "runs").glob(f"{kind}-*/record.json")]
    return {record["name"]: record for record in records}


def run_ids(output: str) -> list[str]:
    """Return the MLflow run IDs a recipe printed for its levels."""
    return re.findall(r"^\s+\d+\s+[\d.]+\s+[\d.]+\s+([0-9a-f]{32})$", output, re.M)


def elsewhere(prepared: Path, tmp_path: Path) -> Path:
    """Return another working directory with the same data and no runs."""
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "data").symlink_to(prepared / "data")
    return tmp_path
