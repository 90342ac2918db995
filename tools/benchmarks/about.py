"""What was measured on, with what, and when: the head of every table of measurements."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path

VERSIONS = ("python", "torch", "torchvision", "numpy", "accelerate", "ffcv", "safetensors", "mlflow")


def about() -> dict[str, str]:
    """Return date, hardware, system, versions and code in words."""
    import torch

    from harness.lineage.nodes.code import code_version

    code = code_version()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cores = len(os.sched_getaffinity(0))
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": f"{_cpu()}, {cores} cores, {torch.get_num_threads()} torch threads, {memory:.0f} GiB, {gpu}",
        "system": f"{platform.system()} {platform.release()}, load average {os.getloadavg()[0]:.1f} at the start",
        "versions": ", ".join(f"{name} {code[name]}" for name in VERSIONS),
        "code": f"commit {code['commit'][:12]}" + (", with uncommitted changes" if code["dirty"] == "true" else ""),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
