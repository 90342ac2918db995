"""Worlds of one process."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.distributed.world import World

sys.path.insert(0, str(Path(__file__).parent))  # for small_training: pytest's importlib mode adds no directory

from small_training import begin_with_overflows, open_fp16_world_on_cpu, open_world  # noqa: E402


@pytest.fixture(params=["no", "bf16"])
def any_world(request) -> Iterator[World]:
    yield from open_world(request.param)


@pytest.fixture
def world() -> Iterator[World]:
    yield from open_world("no")


@pytest.fixture(params=["accelerate", "alone"])
def fp16_world(request) -> Iterator[World]:
    for world in open_fp16_world_on_cpu(request.param):
        begin_with_overflows(world)
        yield world
