"""Disturb a small search in other ways than killing all its processes: `tools/crashtest.py --scenario NAME`.

Each scenario gets a function that makes a search in a fresh directory, and the digests of an undisturbed search.
It returns one line for each problem that it finds. An empty list means that nothing was lost.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import psutil

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_SECONDS = 1800.0
"""Timeout of a launch. Most end in seconds, but a busy machine can be many times slower."""


class CrashedLaunch(Protocol):
    """A launch that runs: a `subprocess.Popen`, or `tests.warm.Running`."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float = ..., /) -> int: ...


class ScenarioSearch(Protocol):
    """A search in a directory of its own, started again and again with one command."""

    where: Path
    tracking_uri: str | None
    """MLflow's address. None: a database in `where`."""
    more: list[str]
    """Further options of the command."""
    environment: dict[str, str]
    """Further environment variables of the command."""

    def start(self) -> CrashedLaunch: ...

    def workers(self, launch: CrashedLaunch) -> list[psutil.Process]:
        """Return the processes of a launch that train."""

    @property
    def store(self) -> str: ...

    def problems(self, expected: Mapping[str, str]) -> list[str]: ...


New = Callable[[str], ScenarioSearch]
Scenario = Callable[[New, Mapping[str, str], random.Random], list[str]]


# ---------------------------------------------------------------------- one process of a launch


def worker_alone(new: New, expected: Mapping[str, str], random: random.Random) -> list[str]:
    """Kill one worker of a launch of several. The others must end, and the same command must continue."""
    search = new("worker-alone")
    launch = search.start()
    wait_for(lambda: _states(search), launch)
    workers = search.workers(launch)
    if len(workers) < 2:
        return ["the launch has fewer than two workers: give --processes 2"]
    random.choice(workers).kill()
    if launch.wait(PATIENCE_SECONDS) == 0:
        return ["the launch ended with 0, although a worker was killed"]
    return _left(workers) + finish(search) + search.problems(expected)


def launcher_alone(new: New, expected: Mapping[str, str], random: random.Random) -> list[str]:
    """Kill the launcher and no worker. The workers must save and end, and the same command must continue."""
    search = new("launcher-alone")
    launch = search.start()
    wait_for(lambda: _states(search), launch)
    workers = search.workers(launch)
    launchers = [process for process in psutil.Process(launch.pid).children(recursive=True) if _is_launcher(process)]
    for process in launchers:
        process.kill()
    psutil.wait_procs(workers, timeout=PATIENCE_SECONDS)
    launch.wait(PATIENCE_SECONDS)
    return _left(workers) + finish(search) + search.problems(expected)


# ---------------------------------------------------------------------- a store that others use or change


def two_directories(new: New, expected: Mapping[str, str], random: random.Random) -> list[str]:
    """Start one command in two directories with one MLflow database, at one moment."""
    first, second = new("first-directory"), new("second-directory")
    second.tracking_uri = first.store
    launches = [first.start(), second.start()]
    codes = [launch.wait(PATIENCE_SECONDS) for launch in launches]
    problems = [f"launch {number} ended with {code}" for number, code in enumerate(codes, 1) if code != 0]
    for search in (first, second):
        problems += deliver(search)
    return [*problems, *(f"{s.where.name}: {what}" for s in (first, second) for what in s.problems(expected))]


def server_killed(new: New, expected: Mapping[str, str], random: random.Random) -> list[str]:
    """Kill the tracking server between its answers, again and again, while a search delivers to it."""
    search = new("server-killed")
    port = free_port()
    search.tracking_uri = f"http://127.0.0.1:{port}"
    with tracking_server(search.where, port):
        launch = search.start()
        # a launch needs the server at its start, and no longer once it trains
        wait_for(lambda: _states(search), launch)
    kills = 1
    while launch.poll() is None:
        with tracking_server(search.where, port), suppress(TimeoutError):
            wait_for(lambda: launch.poll() is not None, None, random.uniform(1, 10))
        kills += 1
    code = launch.wait(PATIENCE_SECONDS)
    with tracking_server(search.where, port):
        problems = [] if code == 0 else [f"the launch ended with {code} after {kills} kills of the server"]
        return problems + deliver(search) + search.problems(expected)


def older_copy(new: New, expected: Mapping[str, str], random: random.Random) -> list[str]:
    """Restore the database from a copy made after level 1. `sync` must deliver the rest again."""
    search = new("older-copy")
    search.more = ["--num-levels", "1"]
    problems = finish(search)
    database = search.where / "mlflow.db"
    shutil.copy(database, search.where / "copy.db")
    search.more = []
    problems += finish(search)
    shutil.copy(search.where / "copy.db", database)
    return problems + deliver(search) + search.problems(expected)


def clicks(new: New, expected: Mapping[str, str], random: random.Random) -> list[str]:
    """Delete a run and move an alias, as a person does in MLflow. The same command and `sync` must repair both."""
    search = new("clicks")
    problems = finish(search)
    client = _client(search)
    delete_a_run(client)
    moved = move_an_alias(client)
    problems += finish(search) + deliver(search) + search.problems(expected)
    return problems + ([] if alias_is_right(client, *moved) else [f"alias {moved[1]} still names another level"])


def delete_a_run(client: Any, level: str = "01") -> str:
    """Delete the MLflow run of a level, and return its ID."""
    (run,) = client.search_runs(_experiments(client), f"tags.level = '{level}' and tags.`harness.kind` = 'level'")
    client.delete_run(run.info.run_id)
    return str(run.info.run_id)


def move_an_alias(client: Any) -> tuple[str, str]:
    """Let the alias of the last level name the version of another one. Return model and alias."""
    (model,) = client.search_registered_models()
    alias = max(model.aliases)
    (other,) = [version for name, version in model.aliases.items() if name == min(model.aliases)]
    client.set_registered_model_alias(model.name, alias, other)
    return model.name, alias


def alias_is_right(client: Any, name: str, alias: str) -> bool:
    """Say whether an alias such as s1-L02 names a version of this level."""
    version = client.get_model_version_by_alias(name, alias)
    return alias.endswith(f"L{version.tags['level']}")


# ---------------------------------------------------------------------- a disk with errors

SITE = '''"""Let one call that writes fail: the n-th of those named in HARNESS_IO_ERROR_AT=n, in this process."""
import builtins, errno, os, sys
number = int(os.environ.get("HARNESS_IO_ERROR_AT", "0"))
def failing(call):
    def wrapper(*args, **options):
        global number
        if sys.modules.get("harness") and (number := number - 1) == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(args[0]))
        return call(*args, **options)
    return wrapper
if number:
    for name in ("replace", "rename", "fsync", "mkdir", "link"):
        setattr(os, name, failing(getattr(os, name)))
'''


def io_errors(new: New, expected: Mapping[str, str], random: random.Random) -> list[str]:
    """Let the n-th call that writes fail with EIO. The launch must say so, and the same command must continue."""
    search = new("io-errors")
    (search.where / "site").mkdir()
    (search.where / "site" / "sitecustomize.py").write_text(SITE)
    number = random.randint(1, 60)
    search.environment = {"PYTHONPATH": str(search.where / "site"), "HARNESS_IO_ERROR_AT": str(number)}
    search.start().wait(PATIENCE_SECONDS)
    said = (search.where / "log").read_text()
    problems = [f"a traceback after EIO in call {number}"] if "Traceback (most recent call last)" in said else []
    search.environment = {}
    return problems + finish(search) + search.problems(expected)


SCENARIOS: dict[str, Scenario] = {
    "worker": worker_alone,
    "launcher": launcher_alone,
    "two-directories": two_directories,
    "server": server_killed,
    "older-copy": older_copy,
    "clicks": clicks,
    "io-errors": io_errors,
}


# ---------------------------------------------------------------------- what they share


def finish(search: ScenarioSearch) -> list[str]:
    """Run the command to its end."""
    code = search.start().wait(PATIENCE_SECONDS)
    return [] if code == 0 else [f"the launch ended with {code}; see {search.where / 'log'}"]


def deliver(search: ScenarioSearch) -> list[str]:
    """Run `tools/lineage.py sync`."""
    command = [sys.executable, str(ROOT / "tools" / "lineage.py"), "sync"]
    place = ["--runs", str(search.where / "runs"), "--tracking-uri", search.store]
    done = subprocess.run([*command, *place], cwd=search.where, capture_output=True, text=True)
    return [] if done.returncode == 0 else [f"sync ended with {done.returncode}: {done.stderr.strip()[-200:]}"]


def wait_for(ready: Callable[[], object], launch: CrashedLaunch | None, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until `ready()`. RuntimeError if the launch ends before it, TimeoutError after `seconds`."""
    until = time.monotonic() + seconds
    while not ready():
        if launch is not None and launch.poll() is not None:
            raise RuntimeError("the launch ended too early")
        if time.monotonic() > until:
            raise TimeoutError("waited in vain")
        time.sleep(0.05)


@contextmanager
def tracking_server(where: Path, port: int) -> Iterator[None]:
    """Run an MLflow server on a database in `where`, and kill it at the end."""
    command = [str(Path(sys.executable).with_name("mlflow")), "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{where}/server.db"]
    command += ["--artifacts-destination", str(where / "artifacts")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with open(where / "server.log", "ab") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        wait_for(lambda: _answers(port), server)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody uses at the moment."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def _answers(port: int) -> bool:
    with suppress(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
        return True
    return False


def _client(search: ScenarioSearch) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(search.store)


def _experiments(client: Any) -> list[str]:
    return [experiment.experiment_id for experiment in client.search_experiments()]


def _states(search: ScenarioSearch) -> list[Path]:
    return list((search.where / "runs").glob(".making-level-*/state-*"))


def workers_below(pid: int) -> list[psutil.Process]:
    """Return the processes below `pid` that a launcher gave a rank."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):
            found += [process] if "LOCAL_RANK" in process.environ() else []
    return found


def _is_launcher(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        words = process.cmdline()
        return "launch" in words and any(Path(word).name == "accelerate" for word in words)
    return False


def _left(workers: list[psutil.Process]) -> list[str]:
    """Name workers that still run a minute after their launch ended."""
    _, alive = psutil.wait_procs(workers, timeout=60)
    return [f"process {process.pid} still runs" for process in alive]


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    sys.exit("error: this file is not a command: run `python tools/crashtest.py --scenario NAME`")
