"""Run scripts in forks of a process with preloaded libraries.

This saves some seconds per script. The project's own modules are imported anew in each fork. Tests of the start of
Python itself must use `subprocess` instead.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from tests.free_port import free_port

REPOSITORY = Path(__file__).resolve().parents[1]
LIBRARIES = ("accelerate", "mlflow.store.tracking.sqlalchemy_store", "safetensors.torch", "torchvision", "tyro")
LAUNCHERS, COUNTS = ("accelerate", "mlflow", "torchrun"), ("--nproc_per_node", "--num_processes")
RESTARTS = "--max_restarts"
"""Launchers whose Python child processes are forks too, and the options that give their number.

Each launcher leads a session, so that a signal to its process group ends its workers too.
"""
MOST_SECONDS = 900
"""Timeout of a script or of an answer from the forking process."""


class Running:
    """A running script, started as `python script options…`.

    Args:
        where: Working directory.
        script: Path of the script, or "-c" or "-m", followed by the program or the module in `options`.
        options: Command-line arguments.
        log: File for both standard output and standard error. By default both are captured for `ended`.
        environment: Environment variables to add to those of this process.
    """

    def __init__(
        self, where: Path, script: str | Path, *options: str, log: Path | None = None, **environment: str
    ) -> None:
        self.words = [str(script), *options]
        self._directory = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # deleted with this object
        self._streams = [log or Path(self._directory.name, name) for name in ("output", "errors")]
        asked = {"words": self.words, "where": str(where), "streams": [*map(str, self._streams)]}
        self.pid = _answer(asked | {"environment": {**os.environ, **environment}})
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, or None while the script runs."""
        if self._code is None:
            self._code = _answer({"ended": self.pid})
        return self._code

    def wait(self, seconds: float = MOST_SECONDS) -> int:
        """Wait for the end of the script and return its exit code. Fail after `seconds`."""
        until = time.monotonic() + seconds
        while (code := self.poll()) is None:
            assert time.monotonic() < until, f"{self.words[0]} did not end"
            time.sleep(0.02)
        return code

    def ended(self, seconds: float = MOST_SECONDS) -> subprocess.CompletedProcess[str]:
        """Wait for the script. Return its exit code and output."""
        code = self.wait(seconds)
        return subprocess.CompletedProcess(self.words, code, *(path.read_text() for path in self._streams))

    def send_signal(self, number: int) -> None:
        """Send a signal, if the script still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, if the script still runs."""
        self.send_signal(signal.SIGKILL)


def warm(where: Path, script: str | Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script and wait for its end. The arguments are those of `Running`."""
    return Running(where, script, *options, **environment).ended()


def torchrun(processes: int, where: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run torchrun on one node and wait for its end.

    Args:
        processes: Number of processes.
        where: Working directory.
        words: Further arguments: options of torchrun, the script, and its options.
        environment: Environment variables to add.
    """
    return launcher(where, "--nproc_per_node", str(processes), *words, **environment).ended()


def launcher(where: Path, *words: str, **environment: str) -> Running:
    """Start torchrun with a free master port, and return without waiting.

    `words` may override the master port, so that several launchers form one job.
    """
    # with --standalone each log message takes a second, because torch searches all modules
    own = ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    return Running(where, Path(sys.executable).with_name("torchrun"), *own, *words, **environment)


def _answer(asked: dict[str, Any]) -> Any:
    forks = _forks()
    assert forks.stdin is not None and forks.stdout is not None
    forks.stdin.write(json.dumps(asked) + "\n")
    forks.stdin.flush()
    assert select.select([forks.stdout], [], [], MOST_SECONDS)[0], "the forking process does not answer"
    return json.loads(forks.stdout.readline())


@functools.cache
def _forks() -> subprocess.Popen[str]:
    """Start the forking process once.

    It ends with this process, because its standard input is then closed.
    """
    command = [sys.executable, "-m", "tests.warm"]
    return subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


class _Spares:
    """Processes that wait to run the Python children of a launcher.

    They are forked before the launcher starts.
    """

    def __init__(self, number: int) -> None:
        self.waiting: list[tuple[int, int]] = []
        """Process ID of each, and the write end of the pipe that receives its job."""
        for _ in range(number):
            told, tell = os.pipe()
            if child := os.fork():
                os.close(told)
                self.waiting.append((child, tell))
            else:
                for pipe in (tell, *(pipe for _, pipe in self.waiting)):
                    os.close(pipe)
                self._wait(told)

    @staticmethod
    def _wait(told: int) -> NoReturn:
        """Read a job from the pipe and run it. Exit if the launcher ended without sending one."""
        with os.fdopen(told) as file:
            asked = file.read()
        if not asked:
            os._exit(0)
        job = json.loads(asked)
        if job["leads"]:
            os.setsid()
        os.chdir(job["where"])
        _python(job["words"], job["environment"])

    def take(self, **job: Any) -> int:
        """Send a job to a waiting process and return its process ID."""
        child, tell = self.waiting.pop()
        with os.fdopen(tell, "w") as file:
            file.write(json.dumps(job))
        return child


class _WarmPopen(subprocess.Popen[Any]):
    """A Popen that uses a waiting process instead of starting Python.

    Without a waiting process it starts Python as usual.
    """

    spares: _Spares

    def __init__(self, args: Sequence[str], **options: Any) -> None:
        self._job = {"words": [*args[1:]], "where": str(options.get("cwd") or os.getcwd())}
        self._job["environment"] = dict(os.environ if options.get("env") is None else options["env"])
        self._job["leads"] = options.get("start_new_session", False)
        super().__init__(args, **options)

    def _execute_child(self, args: Sequence[str], *rest: Any) -> None:
        if args[0] == sys.executable and self.spares.waiting:
            self.pid = self.spares.take(**self._job)
            self._child_created = True
        else:
            super()._execute_child(args, *rest)  # type: ignore[misc]


def _fork(words: list[str], where: str, environment: dict[str, str], streams: list[str]) -> NoReturn:
    """Run `python words…` in this forked process.

    Args:
        words: Arguments of `python`.
        where: Working directory.
        environment: The complete environment.
        streams: Files for standard output and standard error.
    """
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    os.chdir(where)
    for number, path in enumerate((os.devnull, *streams)):
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    if Path(words[0]).name in LAUNCHERS:
        os.setsid()
        asked = [words[words.index(option) + 1] for option in COUNTS if option in words]
        starts = 1 + int(words[words.index(RESTARTS) + 1]) if RESTARTS in words else 1
        _WarmPopen.spares = _Spares(starts * (int(asked[0]) if asked else 2))
        subprocess.Popen = subprocess_handler.Popen = _WarmPopen  # type: ignore[misc]
    _python(words, environment)


def _python(words: list[str], environment: dict[str, str]) -> NoReturn:
    """Run Python code in this process and exit as Python does.

    The exit skips the destruction of modules, which takes long.

    Args:
        words: Arguments of `python`: `-c program …`, `-m module …` or `script …`.
        environment: The complete environment.
    """
    # Phase: run the code, and print an exception as Python does
    os.environ.clear()
    os.environ.update(environment)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    code: object = None
    try:
        _run([word for word in words if word != "-u"])
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    # Phase: join threads, run exit functions and flush
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def _run(words: list[str]) -> None:
    sys.path[1:1] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", *sys.path)]
    if words[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *words[2:]], ""
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    elif words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], os.getcwd()
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, os.path.dirname(words[0])
        runpy.run_path(words[0], run_name="__main__")


def main() -> None:
    """Import the libraries, then serve requests from standard input.

    A request is one line with a JSON object. It either starts a script in a fork, or asks for an exit code. The answer
    is the process ID of the fork, or the exit code, null while the process runs.
    """
    for library in LIBRARIES:
        __import__(library)
    assert threading.active_count() == 1, "a fork would lose the other threads"
    gc.freeze()
    for line in sys.stdin:
        asked = json.loads(line)
        if "ended" in asked:
            pid, status = os.waitpid(asked["ended"], os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
        elif child := os.fork():
            print(child, flush=True)
        else:
            _fork(**asked)


if __name__ == "__main__":
    main()
