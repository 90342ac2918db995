"""Worlds of one process."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from harness.training import world as world_module
from harness.training.alone import AloneAccelerator
from harness.training.world import World

sys.path.insert(0, str(Path(__file__).parent))  # for small_training: pytest's importlib mode adds no directory

from small_training import open_world  # noqa: E402


@pytest.fixture(params=["no", "bf16"])
def any_world(request) -> Iterator[World]:
    yield from open_world(request.param)


@pytest.fixture
def world() -> Iterator[World]:
    yield from open_world("no")


@pytest.fixture(params=["accelerate", "alone"])
def fp16_world(request) -> Iterator[World]:
    """fp16 with its loss scale, on the CPU: Accelerate would quietly take float32 there, and the harness refuses it.

    PyTorch itself does it, so all but the kernels can be tried without a GPU. The scale begins so high that the first
    steps overflow, and grows again after two good ones.
    """
    for world in open_world("no"):
        if request.param == "alone":
            accelerator = AloneAccelerator("fp16", torch.device("cpu"))
        else:
            from accelerate.state import AcceleratorState

            AcceleratorState._reset_state()
            accelerator = world_module._accelerator("fp16", torch.device("cpu"))
            accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu")
        world._use("fp16", accelerator)
        world._fresh_scaler |= {"scale": 2.0**20, "growth_interval": 2}
        yield world
