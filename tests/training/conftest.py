"""Worlds of one process."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.training.world import World

sys.path.insert(0, str(Path(__file__).parent))  # for small_training: pytest's importlib mode adds no directory


@pytest.fixture(params=["no", "bf16"])
def any_world(request) -> Iterator[World]:
    yield from open_world(request.param)


@pytest.fixture
def world() -> Iterator[World]:
    yield from open_world("no")


def open_world(precision: str) -> Iterator[World]:
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    yield World(precision)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
