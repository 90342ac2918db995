"""Describe a launch's machine and command, and sample the machine's load."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import re
import shlex
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from harness.common.escape import redact_word
from harness.common.program import own_words

try:
    import psutil
except ModuleNotFoundError:  # psutil is optional
    psutil = None

if TYPE_CHECKING:
    import torch

_MIB, _GIB = 2**20, 2**30
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of <malloc.h>
LEAST_SECONDS = 1.0
"""Shortest interval between two samples of the load."""
SHARE_OF_ELAPSED = 1 / 60
"""Interval between two samples, as a share of the time since the start of the run. Five days then give about 600
samples, not 400,000."""


def launch_command() -> str:
    """Return the shell command that started this process, without passwords and tokens.

    It begins with `accelerate launch` if that is the parent process.
    """
    script = [redact_word(word) for word in [*own_words(), *sys.argv[1:]]]
    if psutil is None:
        return shlex.join(script)
    try:
        above = psutil.Process().parent()
        words = [redact_word(word) for word in above.cmdline()] if above else []
    except psutil.Error:
        words = []
    names = [Path(word).name for word in words[:3]]
    if "launch" in names and "accelerate" in names[: names.index("launch")]:
        return shlex.join(["accelerate", *words[names.index("launch") :]])
    return shlex.join(script)


@functools.cache
def cpu_name() -> str:
    """Return the processor's name from /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.processor() or platform.machine())


def hardware(device: torch.device | None = None) -> dict[str, Any]:
    """Return processor, usable cores, memory in GiB and names of visible GPUs.

    If `device` is a CUDA device, the result also has `cuda_facts` under `cuda`.
    """
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "cpu": cpu_name(),
        "cores": _affine_cores(),
        "memory_gib": round(memory_bytes() / _GIB, 1),
        "gpus": gpus,
    } | ({"cuda": cuda_facts()} if device is not None and device.type == "cuda" else {})


def _affine_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cores() -> int:
    """Return how many cores this process may keep busy, by its affinity and by its container's CPU limit."""
    try:
        from joblib import cpu_count  # heeds the limits of containers, too
    except ModuleNotFoundError:  # a minimal installation
        return _affine_cores()
    return int(cpu_count())


def share_of_cores(processes: int) -> int:
    """Return one process's share of its node's usable cores, at least 1.

    Under Slurm, a task has SLURM_CPUS_PER_TASK cores, even where the affinity shows all cores of the node.

    Args:
        processes: Processes of the launch on this node.
    """
    cores, per_task = usable_cores(), _of_slurm("SLURM_CPUS_PER_TASK")
    if per_task is None:
        return max(1, cores // processes)
    # `srun` starts a process or a launcher in each task. A batch script has the cores of all tasks of its node.
    started = _of_slurm("SLURM_STEP_TASKS_PER_NODE") or 1
    tasks = max(started, _of_slurm("SLURM_TASKS_PER_NODE") or 1)
    return max(1, min(per_task * tasks // processes, cores // max(1, processes // started)))


def _of_slurm(name: str) -> int | None:
    """Return the number at the start of a variable such as SLURM_TASKS_PER_NODE=8(x2), or None."""
    found = re.match(r"[1-9]\d*", os.environ.get(name, ""))
    return int(found[0]) if found else None


def cuda_facts() -> dict[str, Any]:
    """Return facts about CUDA that may change a run's bits.

    They are not part of any key: versions of libraries and driver, the state of TF32, and cuDNN's settings. An unknown
    fact is None. Call this only when the launch uses CUDA, because reading the device capability initialises CUDA.
    """
    import torch

    cuda, cudnn = torch.backends.cuda, cast(Any, torch.backends.cudnn)
    questions: dict[str, Callable[[], Any]] = {
        "num_devices": torch.cuda.device_count,
        "cuda": lambda: torch.version.cuda,
        "cudnn": cudnn.version,
        "nccl": lambda: ".".join(map(str, torch.cuda.nccl.version())),
        "driver": _driver_version,
        "matmul_allow_tf32": lambda: cuda.matmul.allow_tf32,
        "matmul_fp32_precision": lambda: cuda.matmul.fp32_precision,
        "float32_matmul_precision": torch.get_float32_matmul_precision,
        "tf32_supported": lambda: torch.cuda.get_device_capability() >= (8, 0),
        "tf32_override": lambda: os.environ.get("NVIDIA_TF32_OVERRIDE", "not set"),
        "cudnn_allow_tf32": lambda: cudnn.allow_tf32,
        "cudnn_conv_fp32_precision": lambda: cudnn.conv.fp32_precision,
        "cudnn_benchmark": lambda: cudnn.benchmark,
        "cudnn_deterministic": lambda: cudnn.deterministic,
    }
    return {name: _answer(ask) for name, ask in questions.items()}


def _answer(ask: Callable[[], Any]) -> Any:
    """Return the answer, or None if it is not available."""
    try:
        return ask()
    except (AttributeError, RuntimeError):
        # An older torch, or a build without NCCL. Also, torch refuses the old TF32 setting once the new one was used.
        return None


@functools.cache
def _driver_version() -> str | None:
    """Return the NVIDIA driver version from NVML or the kernel, or None."""
    with suppress(Exception):  # no package, no library, no permission
        import pynvml

        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetDriverVersion()
        return version.decode() if isinstance(version, bytes) else str(version)
    with suppress(OSError):
        return Path("/sys/module/nvidia/version").read_text().strip()
    return None


def memory_bytes() -> int:
    """Return the size of this machine's memory."""
    return psutil.virtual_memory().total if psutil else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def keep_freed_memory() -> None:
    """Let this process reuse freed memory for its next tensors, instead of returning it to the system.

    By default, the C library returns large tensors at once. Each step then gets new pages, which the kernel has to
    clear. On a CPU, this can take a third of a training. Until `return_freed_memory`, the process keeps its size.
    MALLOC_TRIM_THRESHOLD_ in the environment keeps the default. Without glibc, nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        mallopt(_M_MMAP_MAX, 0)  # no mapping of its own for a large tensor
        mallopt(_M_TRIM_THRESHOLD, -1)  # never shrink the heap


def return_freed_memory() -> None:
    """Return freed memory to the system, between two phases with tensors of other sizes."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


Sample = tuple[str, float, int]
"""Name, value, Unix time in milliseconds."""


@contextmanager
def sampled_load(since_s: float, *, wanted: bool = True) -> Iterator[deque[Sample]]:
    """Sample the machine's load in a thread, as MLflow system metrics.

    Sampling uses neither torch nor a random generator, so it does not change a training's bits.

    Args:
        since_s: Start of the run, Unix time in seconds. The longer ago, the longer the interval between samples.
        wanted: Whether to sample at all.

    Yields:
        A queue of samples. The caller removes those that it has read.
    """
    samples: deque[Sample] = deque()  # its operations are atomic, so the threads need no lock
    ended = threading.Event()
    if not wanted:
        yield samples
        return
    # Import NVML here, not in the thread: concurrent imports could see a partly initialised module.
    readers = [_load, *_gpu_readers()]

    def work() -> None:
        _load()  # psutil returns the mean CPU load since the previous call
        while not ended.wait(max(LEAST_SECONDS, (time.time() - since_s) * SHARE_OF_ELAPSED)):
            now_ms = int(time.time() * 1000)
            values = {name: value for read in readers for name, value in read().items()}
            for name, value in values.items():
                samples.append((f"system/{name}", value, now_ms))

    # Sample until the caller leaves the context.
    thread = threading.Thread(target=work, name="load-sampler", daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


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
    """Return a load reader per GPU, or none without NVML."""
    try:
        import pynvml

        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except Exception:  # no package, no driver or no permission
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
        pass  # a virtual GPU may not support every query: keep the values read so far
    return found
