"""Provide simulated CUDA for one test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.simulated_cuda.label import Record, simulated_cuda


@pytest.fixture
def cuda() -> Iterator[Record]:
    """Simulate a CUDA device, and return its record of waits and kernels."""
    with simulated_cuda() as record:
        yield record
