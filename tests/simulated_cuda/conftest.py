"""The label, put on for one test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.simulated_cuda.label import Record, simulated_cuda


@pytest.fixture
def cuda() -> Iterator[Record]:
    """A CUDA device that is the CPU, and the record of its waits and kernels."""
    with simulated_cuda() as record:
        yield record
