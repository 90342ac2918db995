"""Test the recorded facts about machine and launch."""

import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pynvml
import pytest
import torch

from harness.common import machine
from harness.common.machine import cuda_facts, hardware, launch_command, sampled_load, share_of_cores
from harness.experiment.experiment import loader_threads

REPOSITORY = Path(__file__).parents[1]


def test_hardware_is_that_of_this_machine() -> None:
    found = hardware()
    assert found["cpu"] in Path("/proc/cpuinfo").read_text() or not Path("/proc/cpuinfo").exists()
    assert 1 <= found["cores"] <= (psutil.cpu_count() or 1)
    assert abs(found["memory_gib"] - psutil.virtual_memory().total / 2**30) < 0.1
    assert len(found["gpus"]) == torch.cuda.device_count()


@pytest.mark.parametrize(
    ("cores", "processes", "slurm", "share"),
    [
        (64, 8, {}, 8),
        (2, 2, {}, 1),
        (1, 8, {}, 1),
        (64, 8, {"SLURM_CPUS_PER_TASK": "64"}, 8),  # one launcher a node
        (128, 8, {"SLURM_CPUS_PER_TASK": "64", "SLURM_TASKS_PER_NODE": "1(x2)"}, 8),  # the affinity does not show it
        (8, 8, {"SLURM_CPUS_PER_TASK": "8", "SLURM_STEP_TASKS_PER_NODE": "8"}, 8),  # one task a process, bound
        (64, 8, {"SLURM_CPUS_PER_TASK": "8", "SLURM_STEP_TASKS_PER_NODE": "8(x2)"}, 8),  # one task a process, unbound
        (64, 8, {"SLURM_CPUS_PER_TASK": "8", "SLURM_TASKS_PER_NODE": "8"}, 8),  # a launcher in the batch script
        (64, 1, {"SLURM_CPUS_PER_TASK": "8"}, 8),
        (64, 8, {"SLURM_CPUS_PER_TASK": ""}, 8),
    ],
)
def test_a_process_has_its_share_of_the_cores(
    cores: int, processes: int, slurm: dict[str, str], share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but one core of the share are for the loader."""
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_TASKS_PER_NODE", "SLURM_STEP_TASKS_PER_NODE"):
        monkeypatch.setenv(name, slurm.get(name, ""))
    monkeypatch.setattr(machine, "usable_cores", lambda: cores)
    assert share_of_cores(processes) == share
    assert loader_threads(-1, processes) == max(1, share - 1)
    assert loader_threads(5, processes) == 5


def test_usable_cores_heed_the_cpu_limit_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 3)
    assert machine.usable_cores() == 3


def test_a_cpu_launch_does_not_query_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cuda_facts", lambda: pytest.fail("cuda_facts was called"))
    assert hardware(torch.device("cpu")).keys() == hardware().keys() == {"cpu", "cores", "memory_gib", "gpus"}


def test_a_cuda_launch_names_libraries_driver_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_driver_version", lambda: "570.1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    facts = hardware(torch.device("cuda", 0))["cuda"]
    assert facts == {
        "num_devices": 0,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "driver": "570.1",
        "matmul_allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        "matmul_fp32_precision": torch.backends.cuda.matmul.fp32_precision,
        "float32_matmul_precision": "highest",
        "tf32_supported": None,
        "tf32_override": "not set",
        "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
        "cudnn_conv_fp32_precision": torch.backends.cudnn.conv.fp32_precision,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": False,
    }
    assert not torch.cuda.is_initialized()


def test_an_unavailable_fact_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a build without NCCL, and set TF32 through torch's new setting.

    After that torch raises an error when the old setting is read.
    """

    def missing() -> None:
        raise AttributeError("_nccl_version")

    monkeypatch.setattr(torch.cuda.nccl, "version", missing)
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    try:
        facts = cuda_facts()
    finally:
        torch.backends.cudnn.conv.fp32_precision = before
    assert facts["nccl"] is None and facts["cudnn_allow_tf32"] is None
    assert facts["cudnn_conv_fp32_precision"] == "ieee" and facts["cudnn"] is not None


def test_the_driver_version_comes_from_nvml_or_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    find = machine._driver_version.__wrapped__  # without the cache
    kernel = Path("/sys/module/nvidia/version")
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path: "560.2\n" if path == kernel else read(path))
    monkeypatch.setattr(pynvml, "nvmlInit", refuse)
    assert find() == "560.2"
    begun: list[bool] = []
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: begun.append(True))
    monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: "570.1" if begun else refuse())
    assert find() == "570.1"


@pytest.mark.long
def test_launch_command_is_the_command_of_the_launcher(tmp_path: Path) -> None:
    """Run a stand-in for Accelerate's launcher.

    A launcher is recognised by its command line: the second word ends in `accelerate`, the third is `launch`.
    """
    launcher = tmp_path / "accelerate"
    launcher.write_text("import subprocess, sys\nsubprocess.run([sys.executable, *sys.argv[4:]], check=True)\n")
    script = tmp_path / "say.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(REPOSITORY)!r})\n")
    with script.open("a") as file:
        file.write("from harness.common.machine import launch_command\nprint(launch_command())\n")
    words = ["launch", "--num_processes", "1", str(script), "--name", "two words"]
    done = subprocess.run([sys.executable, str(launcher), *words], capture_output=True, text=True, check=True)
    assert shlex.split(done.stdout) == ["accelerate", *words]
    done = subprocess.run([sys.executable, str(script), "--a", "b c"], capture_output=True, text=True, check=True)
    assert shlex.split(done.stdout) == ["python", str(script), "--a", "b c"]
    assert launch_command().startswith("python ")


@pytest.mark.long
def test_load_sampling_slows_down_and_changes_no_random_number() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with sampled_load(time.time()) as young, sampled_load(time.time() - 3600) as old:
        time.sleep(2.6)
    assert torch.equal(torch.rand(3), expected)
    samples = list(young)
    names = {name for name, _, _ in samples}
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_percentage"} <= names
    assert 1 <= len({time_ms for _, _, time_ms in samples}) <= 2
    assert all(0 <= value <= 100 for name, value, _ in samples if name.endswith("percentage"))
    assert not old  # no sample yet: the interval grows with the age of the run


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
@pytest.mark.long
def test_freed_memory_is_used_again_unless_the_environment_says_otherwise() -> None:
    script = """if True:
        import resource
        from harness.common.machine import keep_freed_memory, return_freed_memory
        keep_freed_memory()
        bytes(bytearray(2**26))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        bytes(bytearray(2**26))
        again = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        return_freed_memory()
        bytes(bytearray(2**26))
        print(again - before, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - again)
    """
    new_pages: list[list[int]] = []
    for own in ({}, {"MALLOC_TRIM_THRESHOLD_": "131072"}):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | own
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
        new_pages.append([int(word) for word in done.stdout.split()])
    (kept, returned), (default, _) = new_pages
    assert kept < 100 < min(returned, default)
