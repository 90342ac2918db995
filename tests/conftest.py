"""What every test runs under. Fixtures of one room stand in that room's own conftest."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for tracking_server: pytest's importlib mode adds no directory

# Before any test imports the libraries that read them. A test must never write to the user's own MLflow store, and
# two workers on two cores get one thread each.
for _name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
    os.environ.pop(_name, None)
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
# libopencv-dev brings TBB, numba then prefers it, and FFCV's writer never exits.
os.environ.setdefault("NUMBA_THREADING_LAYER", "omp")


@pytest.fixture(autouse=True)
def messages() -> None:
    """Show the harness's messages on standard error, as every command does."""
    from harness.common.logging import show_messages

    show_messages("normal")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked gpu where there is none, so that a plain `pytest` works on any machine.

    HARNESS_GPU_TESTS_DEVICE=label or =cpu runs their bodies without one: see tests/gpu/conftest.py.
    """
    if "HARNESS_GPU_TESTS_DEVICE" in os.environ:
        return
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
