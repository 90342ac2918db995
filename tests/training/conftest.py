"""Fixtures: worlds of one process in each precision."""

from collections.abc import Iterator

import pytest

from harness.distributed.world import World
from tests.training.small_training import begin_with_overflows, open_fp16_world_on_cpu, open_world


@pytest.fixture(params=["no", "bf16"])
def any_world(request) -> Iterator[World]:
    yield from open_world(request.param)


@pytest.fixture
def world() -> Iterator[World]:
    yield from open_world("no")


@pytest.fixture
def fp16_world() -> Iterator[World]:
    for world in open_fp16_world_on_cpu():
        begin_with_overflows(world)
        yield world
