"""Provide the device of the GPU tests, and a `World` on it.

By default the tests need a CUDA device. The variable HARNESS_GPU_TESTS_DEVICE selects another one:

* `label` simulates CUDA on the CPU and refuses mixed devices. See tests/simulated_cuda/label.py.
* `cpu` runs the tests on the plain CPU.

Both test the tests, not the device. Tests that need a real device are then skipped with a reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from harness.distributed.world import World
from tests.training.small_training import open_fp16_world_on_cpu, open_world

# cuBLAS reads this at its first use, in whichever test that is
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
ON = os.environ.get("HARNESS_GPU_TESTS_DEVICE", "cuda")
if ON not in ("cuda", "label", "cpu"):
    raise pytest.UsageError(f"HARNESS_GPU_TESTS_DEVICE is {ON!r}; it must be cuda, label or cpu")


@pytest.fixture(autouse=True)
def label() -> Iterator[None]:
    """Simulate CUDA during one test, if HARNESS_GPU_TESTS_DEVICE=label.

    The simulation ends with the test, because other tests may run in the same process.
    """
    if ON != "label":
        yield
        return
    from tests.simulated_cuda.label import simulated_cuda

    with simulated_cuda():
        yield


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Return the CUDA device, or the CPU if HARNESS_GPU_TESTS_DEVICE=cpu."""
    return torch.device("cpu" if ON == "cpu" else "cuda")


@pytest.fixture
def on_cuda(device: torch.device) -> None:
    """Skip a test that needs CUDA, real or simulated."""
    if device.type != "cuda":
        pytest.skip("needs CUDA")


@pytest.fixture
def on_real_device() -> None:
    """Skip a test that needs a real CUDA device."""
    if ON != "cuda":
        pytest.skip("needs a real CUDA device")


@pytest.fixture(params=["no", "bf16", "fp16"])
def world(request: pytest.FixtureRequest, device: torch.device) -> Iterator[World]:
    """Open a world of one process in each precision.

    TF32 is off, because the tests compare with results in full float32.
    """
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    if request.param == "fp16" and device.type == "cpu":
        yield from open_fp16_world_on_cpu()
    else:
        for world in open_world(request.param):
            assert world.device.type == device.type
            yield world
    torch.backends.cudnn.allow_tf32 = tf32


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Enable deterministic algorithms, as `--deterministic` does, during one test."""
    World.make_deterministic()
    yield
    torch.use_deterministic_algorithms(False)
