"""Scripts in processes of their own that find the libraries loaded, which takes seconds: forks of one that loaded them.

The project's own modules are loaded anew in each. What the start of Python itself must show is tested without this.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import runpy
import select
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
LIBRARIES = ("accelerate", "mlflow.store.tracking.sqlalchemy_store", "safetensors.torch", "torchvision", "tyro")
MOST_SECONDS = 900


def warm(where: Path, script: str | Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a Python script in `where`, with these variables besides those of this process."""
    forks = _forks()
    assert forks.stdin is not None and forks.stdout is not None
    with tempfile.NamedTemporaryFile("r") as output, tempfile.NamedTemporaryFile("r") as errors:
        asked = {"script": str(script), "options": options, "where": str(where)}
        asked |= {"environment": {**os.environ, **environment}, "streams": [output.name, errors.name]}
        forks.stdin.write(json.dumps(asked) + "\n")
        forks.stdin.flush()
        assert select.select([forks.stdout], [], [], MOST_SECONDS)[0], f"{script} did not end"
        code = int(forks.stdout.readline())
        return subprocess.CompletedProcess([str(script), *options], code, output.read(), errors.read())


def torchrun(processes: int, where: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run torch's launcher for that many processes of this machine; they have not loaded the libraries."""
    return warm(
        where,
        Path(sys.executable).with_name("torchrun"),
        "--standalone",
        "--nproc_per_node",
        str(processes),
        *words,
        **environment,
    )


@functools.cache
def _forks() -> subprocess.Popen[str]:
    """Start the process that is forked; it ends with this one, whose end closes its standard input."""
    command = [sys.executable, "-m", "tests.warm"]
    return subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _begin(script: str, options: list[str], where: str, environment: dict[str, str], streams: list[str]) -> None:
    """Make this process what `python script …` is when it begins."""
    os.chdir(where)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate((os.devnull, *streams)):
        file = os.open(path, os.O_RDWR)
        os.dup2(file, number)
        os.close(file)
    sys.argv = [script, *options]
    sys.path[0] = os.path.dirname(script)


def main() -> None:
    """Load the libraries; then run a script for each line of standard input, and print its exit code."""
    for library in LIBRARIES:
        __import__(library)
    assert threading.active_count() == 1, "a fork takes no other thread along"
    gc.freeze()
    for line in sys.stdin:
        asked = json.loads(line)
        if not (child := os.fork()):
            _begin(**asked)
            runpy.run_path(asked["script"], run_name="__main__")
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
