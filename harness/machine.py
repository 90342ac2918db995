"""The machine a launch runs on: what it is, how the launch was called, and how busy it was meanwhile."""

from __future__ import annotations

import functools
import os
import platform
import shlex
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

try:
    import psutil
except ModuleNotFoundError:  # a machine with PyTorch and little else
    psutil = None

_MIB, _GIB = 2**20, 2**30
LEAST_SECONDS = 1.0
"""Between two samples, at first."""
SHARE_OF_ELAPSED = 1 / 60
"""…and later this share of the time since the beginning, so that five days give some 600 samples, not 400,000."""


def process_exists(pid: int) -> bool:
    """Say whether this machine has a process of this number."""
    if psutil is not None:
        return bool(psutil.pid_exists(pid))
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def launch_command() -> str:
    """Return the command that started this process, ready to paste: with `accelerate launch` if that is its parent."""
    script = [sys.argv[0], *sys.argv[1:]]
    if psutil is None:
        return shlex.join(["python", *script])
    try:
        above = psutil.Process().parent()
        words = above.cmdline() if above else []
    except psutil.Error:
        words = []
    names = [Path(word).name for word in words[:3]]
    if "launch" in names and "accelerate" in names[: names.index("launch")]:
        return shlex.join(["accelerate", *words[names.index("launch") :]])
    return shlex.join(["python", *script])


@functools.cache
def cpu_name() -> str:
    """Return the processor's name as Linux has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.processor() or platform.machine())


def hardware() -> dict[str, Any]:
    """Return processor, cores this process may use, memory in GiB and the names of the GPUs it sees."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": cpu_name(),
        "cores": cores,
        "memory_gib": round(_memory_bytes() / _GIB, 1),
        "gpus": gpus,
    }


def _memory_bytes() -> int:
    return psutil.virtual_memory().total if psutil else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


Sample = tuple[str, float, int]
"""Name, value, time in ms since 1970."""


class LoadSampler:
    """A thread that reads how busy the machine is, under the names that MLflow shows as system metrics.

    It touches neither torch nor any generator: training has the same bits with and without it.
    """

    def __init__(self, since_s: float) -> None:
        """`since_s` is when the run began, in seconds since 1970: the longer ago, the rarer the samples."""
        self.since_s = since_s
        self._samples: list[Sample] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="load-sampler", daemon=True)

    def __enter__(self) -> LoadSampler:
        _load()  # each reading of the processors is the mean since the one before
        self._gpus = _gpu_readers()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def take(self) -> list[Sample]:
        """Return the samples since the last call."""
        with self._lock:
            taken, self._samples = self._samples, []
        return taken

    def _work(self) -> None:
        while not self._ended.wait(max(LEAST_SECONDS, (time.time() - self.since_s) * SHARE_OF_ELAPSED)):
            now_ms = int(time.time() * 1000)
            values = _load() | {name: value for read in self._gpus for name, value in read().items()}
            with self._lock:
                self._samples += [(f"system/{name}", value, now_ms) for name, value in values.items()]


def _load() -> dict[str, float]:
    if psutil is None:
        return {}
    memory = psutil.virtual_memory()
    return {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": (memory.total - memory.available) / _MIB,
        "system_memory_usage_percentage": memory.percent,
        "process_memory_usage_megabytes": psutil.Process().memory_info().rss / _MIB,
    }


def _gpu_readers() -> list[Callable[[], dict[str, float]]]:
    """Return a reader for each GPU of the machine; none without NVIDIA's library."""
    try:
        import pynvml

        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except Exception:  # no package, no driver, no permission: then there is nothing to show
        return []
    return [functools.partial(_gpu_load, index) for index in range(count)]


def _gpu_load(index: int) -> dict[str, float]:
    import pynvml

    found: dict[str, float] = {}
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        found[f"gpu_{index}_memory_usage_megabytes"] = memory.used / _MIB
        found[f"gpu_{index}_memory_usage_percentage"] = 100 * memory.used / memory.total
        found[f"gpu_{index}_utilization_percentage"] = float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        found[f"gpu_{index}_power_usage_watts"] = pynvml.nvmlDeviceGetPowerUsage(handle) / 1000
    except pynvml.NVMLError:
        pass  # a virtual GPU may refuse one of them: what it told is kept
    return found
