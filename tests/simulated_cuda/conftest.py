"""The label, put on for one test."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# pytest's importlib mode adds no directory: for the label, for the story and the small training it is put on
sys.path[:0] = [str(Path(__file__).parents[1] / of) for of in ("simulated_cuda", "gpu", "training")]

from label import Record, simulated_cuda  # noqa: E402


@pytest.fixture
def cuda() -> Iterator[Record]:
    """A CUDA device that is the CPU, and the record of its waits and kernels."""
    gc.freeze()  # Accelerate collects garbage before each training: not among all that the libraries have made
    with simulated_cuda() as record:
        yield record
    gc.unfreeze()
