"""Make the chains of a plan in several processes on one node, the jobs.

The parent starts the jobs, shows their progress and passes on stop signals. Each job takes the longest chain that no
other job has taken, until none is left. Chains share no runs, so no run is made twice and no job waits for another.
All jobs use one directory of runs and one MLflow store, whose locks allow this.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from harness.common import logging as messages
from harness.common.files import NO_LOCKS, read_json
from harness.common.machine import usable_cores
from harness.common.process import PARENT_VARIABLE
from harness.common.tables import live_table
from harness.common.waiting import wait_until
from harness.distributed.status import VARIABLE as STATUS_VARIABLE
from harness.distributed.status import reported
from harness.distributed.stop import EXIT_STOPPED, StoppedError
from harness.distributed.world import StopRequest
from harness.reproduction.job import CLAIMS, VARIABLE

_POLL_SECONDS = 0.3
_EARLIER_SECONDS = 60.0
"""How long to wait for the jobs of an earlier launch, which save their state after their parent was killed."""
_TAIL_LINES = 10

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """The device of one job."""

    name: str
    cores: tuple[int, ...]
    """CPU cores that the job may use."""
    threads: str
    """OMP_NUM_THREADS, unless the user has set it."""
    gpu: str | None = None
    """CUDA_VISIBLE_DEVICES; None leaves it as it is."""


def devices(jobs: int, per_gpu: int, gpus: Sequence[str], cores: Sequence[int], threads: int) -> list[Device]:
    """Return one device for each job: a GPU if there are any, and an equal share of the CPU cores.

    Args:
        jobs: Number of jobs.
        per_gpu: Number of jobs that share a GPU.
        gpus: GPUs in the notation of CUDA_VISIBLE_DEVICES.
        cores: CPU cores that this process may use.
        threads: Cores that all jobs together may keep busy. A container's CPU limit can make it less than the cores.

    Raises:
        ValueError: There are more jobs than GPUs have room for.
    """
    if gpus and jobs > len(gpus) * per_gpu:
        raise ValueError(
            f"--jobs {jobs}: there is room for {len(gpus) * per_gpu} jobs ({len(gpus)} GPUs, --jobs-per-gpu "
            f"{per_gpu}). Give fewer --jobs or more --jobs-per-gpu"
        )
    found = []
    for number in range(jobs):
        # With more jobs than cores, jobs share single cores.
        start, end = (at * len(cores) // jobs for at in (number, number + 1))
        share = tuple(cores[start : max(end, start + 1)])
        each = str(max(1, min(len(share), threads // jobs)))
        gpu = gpus[number % len(gpus)] if gpus else None
        name = f"core {share[0]}" if len(share) == 1 else f"cores {share[0]}-{share[-1]}"
        found.append(Device(name if gpu is None else f"GPU {gpu}", share, each, gpu))
    return found


def own_devices(jobs: int, per_gpu: int) -> list[Device]:
    """Return the devices of the jobs on this node; errors as in `devices`. OMP_NUM_THREADS of the user stays."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    gpus = (named or [str(number) for number in range(count)])[:count]
    cores = sorted(os.sched_getaffinity(0))
    return devices(jobs, per_gpu, gpus, cores, threads=usable_cores())


@dataclass
class _Process:
    """One job as the parent sees it: its process, its log and its last report."""

    number: int
    device: Device
    path: Path
    running: subprocess.Popen[bytes] | None = None
    log_start: int = 0
    """Size of the log when the process was started."""
    state: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"job {self.number} ({self.device.name})"

    @property
    def log(self) -> Path:
        return self.path.with_suffix(".log")

    def start(self, command: Sequence[str], held: Collection[int]) -> None:
        """Start the process on its device. It inherits the lock, so that the lock lasts as long as the job."""
        self.path.with_suffix(".json").unlink(missing_ok=True)
        self.state = {}
        own = {VARIABLE: str(self.path), PARENT_VARIABLE: str(os.getpid())}
        own[STATUS_VARIABLE] = str(self.path.with_suffix(".status"))
        own |= {} if self.device.gpu is None else {"CUDA_VISIBLE_DEVICES": self.device.gpu}
        with open(self.log, "a") as log:
            log.write(f"# {datetime.now().astimezone().isoformat(timespec='seconds')} {shlex.join(command)}\n")
            log.flush()
            self.log_start = log.tell()
            self.running = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"OMP_NUM_THREADS": self.device.threads, **os.environ, **own},
                pass_fds=tuple(held),
                process_group=0,  # a terminal's Ctrl-C then reaches the parent only, which passes it on once
            )
        with suppress(ProcessLookupError):
            os.sched_setaffinity(self.running.pid, self.device.cores)

    def stop(self) -> None:
        """Ask its process to save its state and end."""
        if self.running is not None:
            self.running.terminate()

    def read(self) -> None:
        """Read its last report."""
        with suppress(OSError, ValueError):
            state = read_json(self.path.with_suffix(".json"))
            self.state = state if isinstance(state, dict) else {}

    def tail(self) -> str:
        """Return the last lines of its log."""
        with open(self.log, "rb") as log:
            log.seek(self.log_start)
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-_TAIL_LINES:])


class Jobs:
    """The jobs of one launch, as the parent sees them."""

    def __init__(self, directory: Path, chains: Mapping[str, int], devices: Sequence[Device]) -> None:
        """Describe the jobs.

        Args:
            directory: Directory of their logs and reports.
            chains: Epochs of each chain, by name.
            devices: The device of each job.
        """
        self.directory, self.chains = directory.absolute(), dict(chains)
        self._jobs = [_Process(n, one, self.directory / f"job-{n}") for n, one in enumerate(devices, start=1)]
        self._finished: set[str] = set()
        self._failed: list[str] = []
        self._stopped = ""
        self.stop = StopRequest()

    def before_ending(self, tell: Callable[[str], None]) -> None:
        """Do nothing: the parent has no heartbeat."""

    def peer_failed(self) -> bool:
        """Return False: the parent has no other ranks."""
        return False

    def run(self, command: Sequence[str], runs: Path) -> None:
        """Run all jobs and wait for them.

        Args:
            command: The command of a job.
            runs: The directory of the runs, in which the status file is kept.

        Raises:
            StoppedError: This process was asked to stop. All jobs have saved their state.
            ChildProcessError: A job failed. The others have finished. The message names chains and logs.
            ValueError: Another launch is running jobs in the same directory.
        """
        # Phase: start the jobs.
        self.directory.mkdir(parents=True, exist_ok=True)
        with self.stop.listening(), reported(runs, self), _locked(self.directory) as held:
            shutil.rmtree(self.directory / CLAIMS, ignore_errors=True)
            (self.directory / CLAIMS).mkdir()
            _log.info(f"{len(self.chains)} chains in {len(self._jobs)} jobs; logs: {self.directory}{os.sep}job-*.log")

            # Phase: watch them. Send a stop signal on once, and wait until all have saved their state.
            with self._display() as show:
                for job in self._jobs:
                    job.start(command, held)
                told = False
                while running := [job for job in self._jobs if job.running is not None]:
                    if self.stop.reason and not told:
                        told = True
                        _log.info(f"{self.stop.reason}: the jobs save their state and stop")
                        for job in running:
                            job.stop()
                    for job in running:
                        self._look_at(job, command, held)
                    show()
                    time.sleep(_POLL_SECONDS)

            # Phase: report the outcome.
            if self.stop.reason:
                raise StoppedError(self.stop.reason)
            if self._failed:
                finished = f"{len(self._finished)} of {len(self.chains)} chains are finished"
                raise ChildProcessError(f"{finished}; failed: {'; '.join(self._failed)}. The same command tries again")
            if self._stopped:
                raise StoppedError(self._stopped)

    def _look_at(self, job: _Process, command: Sequence[str], held: Collection[int]) -> None:
        """Read a job's report and, if its process has ended, note how. Start it anew if chains are left."""
        # Phase: note newly finished chains. Read after the exit code, so that the last report counts.
        assert job.running is not None
        code, before = job.running.poll(), job.state.get("chain")
        job.read()
        chain = job.state.get("chain", "")
        for name in sorted(set(job.state.get("finished", ())) - self._finished):
            self._finished.add(name)
            _log.info(f"{job}: {name} is finished, {len(self._finished)} of {len(self.chains)} chains")
        if chain and chain != before:
            _log.info(f"{job}: begins {chain}, {self.chains[chain]} epochs")
        if code is None:
            return

        # Phase: the process has ended.
        job.running = None
        if code == 0:
            return
        if code == EXIT_STOPPED or (self.stop.reason and code == -signal.SIGTERM):
            self._stopped = self._stopped or f"{job} was asked to stop"
            return
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        where = chain or "before its first chain"
        self._failed.append(f"{where} ({how}, log {job.log})")
        _log.error(f"{job} failed: {where}, {how}. The other jobs continue. End of {job.log}:\n{job.tail()}")
        left = self.chains.keys() - {path.name for path in (self.directory / CLAIMS).iterdir()}
        if chain and left and not self.stop.reason:
            job.start(command, held)

    # ------------------------------------------------------------------ display

    @contextmanager
    def _display(self) -> Iterator[Callable[[], None]]:
        """Yield a function that shows all jobs: a table in a terminal, else one line a minute for each."""
        if messages.is_quiet():
            yield lambda: None
        elif sys.stderr.isatty():
            with live_table(numbers=("epochs", "left")) as show:
                yield lambda: show(self.rows())
        else:
            shown_at = time.monotonic()

            def lines() -> None:
                nonlocal shown_at
                if time.monotonic() - shown_at >= messages.SECONDS_PER_LINE:
                    shown_at = time.monotonic()
                    for row in self.rows():
                        units = {name: f"{row[name]} {name}" for name in ("epochs", "left") if row[name]}
                        words = "  ".join(cell for cell in (row | units).values() if cell)
                        _log.info(words if row["job"] == "all" else f"job {words}")

            yield lines

    def rows(self) -> list[dict[str, str]]:
        """Return one row for each job, and one for all: chain, run in progress, epochs done / of all, time left."""
        # Phase: one row for each job. Its rate is in epochs per second.
        rows, left = [], sum(epochs for name, epochs in self.chains.items() if name not in self._finished)
        rates = 0.0
        for job in self._jobs:
            state, chain = job.state, job.state.get("chain", "") if job.running else ""
            done, rate = min(state.get("epochs", 0.0), self.chains.get(chain, 0)), state.get("rate", 0.0)
            if chain:
                left, rates = left - done, rates + rate
            idle = "ended" if job.running is None else "ending" if state.get("finished") else "starting"
            rows.append(
                {
                    "job": str(job.number),
                    "device": job.device.name,
                    "chain": chain or idle,
                    "run": state.get("doing", "") if chain else "",
                    "epochs": f"{done:.1f}/{self.chains[chain]}" if chain else "",
                    "left": _left(self.chains[chain] - done, rate) if chain else "",
                }
            )

        # Phase: the sum.
        every = sum(self.chains.values())
        chains = f"{len(self._finished)}/{len(self.chains)} chains"
        rows.append(
            {"job": "all", "device": "", "chain": chains, "run": "", "epochs": f"{every - left:.1f}/{every}"}
            | {"left": _left(left, rates)}
        )
        return rows


def _left(epochs: float, rate: float) -> str:
    """Return the time that epochs take, or "?" if no rate is known."""
    return tqdm.format_interval(epochs / rate) if rate > 0 else "?"


@contextmanager
def _locked(directory: Path) -> Iterator[tuple[int, ...]]:
    """Lock the directory of the jobs, and yield the lock's file descriptor for them to inherit.

    The lock lasts until the last job has ended, even if the parent is killed.

    Raises:
        ValueError: Another launch holds the lock.
    """
    import fcntl

    # The lock belongs to the open file, so processes that inherit the descriptor hold it, too.
    descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o666)

    def locked() -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        return True

    try:
        if not locked():
            _log.info(f"waiting for the jobs of another launch in {directory}, up to {_EARLIER_SECONDS:g} s")
            if not wait_until(locked, _EARLIER_SECONDS):
                raise ValueError(f"another launch is running its jobs in {directory}: wait for it, or stop it")
        yield (descriptor,)
    finally:
        os.close(descriptor)
