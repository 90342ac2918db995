"""The device these tests are about, and worlds on it.

They need a CUDA device. HARNESS_GPU_TESTS_DEVICE=label runs them on the CPU under the label "cuda:0", which refuses
mixed devices (see tests/simulated_cuda/label.py); HARNESS_GPU_TESTS_DEVICE=cpu runs their bodies on the CPU as it is.
Neither tries the device: questions that only a real one answers are skipped with their reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from harness.distributed.world import World
from tests.training.small_training import open_fp16_world_on_cpu, open_world

# read when cuBLAS is first used, wherever in the session that is
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
ON = os.environ.get("HARNESS_GPU_TESTS_DEVICE", "cuda")
if ON not in ("cuda", "label", "cpu"):
    raise pytest.UsageError(f"HARNESS_GPU_TESTS_DEVICE is {ON!r}; it must be cuda, label or cpu")


@pytest.fixture(autouse=True)
def label() -> Iterator[None]:
    """Put the label on for one test, if HARNESS_GPU_TESTS_DEVICE says so: other tests may share the process."""
    if ON != "label":
        yield
        return
    from tests.simulated_cuda.label import simulated_cuda

    with simulated_cuda():
        yield


@pytest.fixture(scope="session")
def device() -> torch.device:
    """CUDA, or the CPU if HARNESS_GPU_TESTS_DEVICE says so."""
    return torch.device("cpu" if ON == "cpu" else "cuda")


@pytest.fixture
def on_cuda(device: torch.device) -> None:
    """Skip what only CUDA has."""
    if device.type != "cuda":
        pytest.skip("asks about CUDA itself")


@pytest.fixture
def on_real_device() -> None:
    """Skip what neither the CPU nor the label can answer."""
    if ON != "cuda":
        pytest.skip("only a real device answers this")


@pytest.fixture(params=["no", "bf16", "fp16"])
def world(request: pytest.FixtureRequest, device: torch.device) -> Iterator[World]:
    """One process in each precision, without TF32, which is another precision than what is compared."""
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    if request.param == "fp16" and device.type == "cpu":
        yield from open_fp16_world_on_cpu("accelerate")
    else:
        for world in open_world(request.param):
            assert world.device.type == device.type
            yield world
    torch.backends.cudnn.allow_tf32 = tf32


@pytest.fixture
def deterministic() -> Iterator[None]:
    """`--deterministic`, and as it was before."""
    World.make_deterministic()
    yield
    torch.use_deterministic_algorithms(False)
