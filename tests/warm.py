"""Scripts in processes of their own that find the libraries loaded, which takes seconds: forks of one that loaded them.

The project's own modules are loaded anew in each. What the start of Python itself must show is tested without this.
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
"""The Python that they start is warm too. Each leads a session, so that its workers can be ended with it."""
MOST_SECONDS = 900


class Running:
    """A script on its way: `python script options…` in `where`, with these variables besides those of this process.

    With `log`, both its streams go there.
    """

    def __init__(
        self, where: Path, script: str | Path, *options: str, log: Path | None = None, **environment: str
    ) -> None:
        self.words = [str(script), *options]
        self._directory = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # gone with this object
        self._streams = [log or Path(self._directory.name, name) for name in ("output", "errors")]
        asked = {"words": self.words, "where": str(where), "streams": [*map(str, self._streams)]}
        self.pid = _answer(asked | {"environment": {**os.environ, **environment}})
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code; None while it runs."""
        if self._code is None:
            self._code = _answer({"ended": self.pid})
        return self._code

    def wait(self, seconds: float = MOST_SECONDS) -> int:
        """Return the exit code; it must end within so many seconds."""
        until = time.monotonic() + seconds
        while (code := self.poll()) is None:
            assert time.monotonic() < until, f"{self.words[0]} did not end"
            time.sleep(0.02)
        return code

    def ended(self, seconds: float = MOST_SECONDS) -> subprocess.CompletedProcess[str]:
        """Return how it ended, and what it said."""
        code = self.wait(seconds)
        return subprocess.CompletedProcess(self.words, code, *(path.read_text() for path in self._streams))

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once, if it still runs."""
        self.send_signal(signal.SIGKILL)


def warm(where: Path, script: str | Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script to its end."""
    return Running(where, script, *options, **environment).ended()


def torchrun(processes: int, where: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run torch's launcher for that many processes of this machine, to their end."""
    return launcher(where, "--nproc_per_node", str(processes), *words, **environment).ended()


def launcher(where: Path, *words: str, **environment: str) -> Running:
    """Start torch's launcher, which meets others, if there are any, at a port of its own."""
    # --standalone would look through all modules for each of its messages, which takes a second
    own = ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    return Running(where, Path(sys.executable).with_name("torchrun"), *own, *words, **environment)


def _answer(asked: dict[str, Any]) -> Any:
    forks = _forks()
    assert forks.stdin is not None and forks.stdout is not None
    forks.stdin.write(json.dumps(asked) + "\n")
    forks.stdin.flush()
    assert select.select([forks.stdout], [], [], MOST_SECONDS)[0], "the process that is forked does not answer"
    return json.loads(forks.stdout.readline())


@functools.cache
def _forks() -> subprocess.Popen[str]:
    """Start the process that is forked; it ends with this one, whose end closes its standard input."""
    command = [sys.executable, "-m", "tests.warm"]
    return subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


class _Spares:
    """Processes forked before a launcher begins, which wait to become the Python processes that it starts."""

    def __init__(self, number: int) -> None:
        self.waiting: list[tuple[int, int]] = []
        """Process ID of each, and the pipe that tells it what to be."""
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
        """Become what is told; or end, once the launcher has ended without a word."""
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
        """Tell one what to be; return its process ID."""
        child, tell = self.waiting.pop()
        with os.fdopen(tell, "w") as file:
            file.write(json.dumps(job))
        return child


class _WarmPopen(subprocess.Popen[Any]):
    """A launcher's Popen: Python is one of the spare processes, as long as there are any."""

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
    """Be what `python words…` is in `where`."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    os.chdir(where)
    for number, path in enumerate((os.devnull, *streams)):
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    if Path(words[0]).name in LAUNCHERS:
        os.setsid()
        asked = [words[words.index(option) + 1] for option in COUNTS if option in words]
        _WarmPopen.spares = _Spares(int(asked[0]) if asked else 2)
        subprocess.Popen = subprocess_handler.Popen = _WarmPopen  # type: ignore[misc]
    _python(words, environment)


def _python(words: list[str], environment: dict[str, str]) -> NoReturn:
    """Run `-c program words…`, `-m module words…` or `script words…`; then end, without taking all modules apart."""
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
    """Load the libraries; then fork for each line of standard input that has a script, or say whether one has ended."""
    for library in LIBRARIES:
        __import__(library)
    assert threading.active_count() == 1, "a fork takes no other thread along"
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
