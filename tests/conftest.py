"""What every test runs under. Fixtures of one room stand in that room's own conftest."""

from __future__ import annotations

import gc
import os
import sys
from collections import defaultdict
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

# Before any test imports the libraries that read them. A test must never write to the user's own MLflow store, and
# two workers on two cores get one thread each.
for _name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
    os.environ.pop(_name, None)
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
# libopencv-dev brings TBB, numba then prefers it, and FFCV's writer never exits.
os.environ.setdefault("NUMBA_THREADING_LAYER", "omp")

# So that a helper's assertion says as much as a test's.
pytest.register_assert_rewrite(*(f"tests.{room.stem}" for room in Path(__file__).parent.iterdir() if room.is_dir()))

from tests.made_once import made_once  # noqa: E402


def pytest_collection_finish() -> None:
    """Take what the libraries have made out of garbage collection: Accelerate collects before each training."""
    gc.collect()
    gc.freeze()


_short = ""
"""The test that runs, if it is one of `make test-quick`, which start no Python; but test_rooms.py may, to import."""

PYTHONS = ("python", "accelerate", "torchrun")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Note whether this test may start Python."""
    global _short
    free = item.path.name == "test_rooms.py" or any(item.get_closest_marker(name) for name in ("long", "slow"))
    _short = "" if free else item.nodeid
    try:
        return (yield)
    finally:
        _short = ""


def _refuse_python(event: str, arguments: tuple[object, ...]) -> None:
    """Fail a test that starts Python, a launcher or a server, and is not marked long."""
    if event == "subprocess.Popen" and _short and Path(str(arguments[0])).name.startswith(PYTHONS):
        raise AssertionError(f"{_short} starts Python; mark it long")


sys.addaudithook(_refuse_python)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database of MLflow without a run, to copy: making its tables takes seconds."""
    from harness.lineage.tracking.server import Server

    def make(where: Path) -> None:
        Server(f"sqlite:///{where / 'mlflow.db'}", "test", where).client().search_experiments()

    return made_once(tmp_path_factory, "empty_store", make) / "mlflow.db"


@pytest.fixture(autouse=True)
def messages() -> None:
    """Show the harness's messages on standard error, as every command does."""
    from harness.common.logging import show_messages

    show_messages("normal")


def dealt_out(items: Sequence[pytest.Item], workers: int) -> list[pytest.Item]:
    """Return the tests so that each of `workers` begins with long modules and ends with short ones.

    Each worker begins with a contiguous share of the list. Long tests at its end would leave the others idle.
    """
    modules: dict[Path, list[pytest.Item]] = defaultdict(list)
    for item in items:
        modules[item.path].append(item)
    long = {path: sum(item.get_closest_marker("long") is not None for item in own) for path, own in modules.items()}
    shares: list[list[Path]] = [[] for _ in range(workers)]
    for path in sorted(modules, key=lambda path: (-long[path], -len(modules[path]), path)):
        weight = long if long[path] else {one: len(own) for one, own in modules.items()}
        min(shares, key=lambda share: sum(weight[one] for one in share)).append(path)
    return [item for share in shares for path in share for item in modules[path]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deal the tests out over the workers, and skip what is marked gpu where there is no GPU.

    HARNESS_GPU_TESTS_DEVICE=label or =cpu runs their bodies without one: see tests/gpu/conftest.py.
    """
    items[:] = dealt_out(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if "HARNESS_GPU_TESTS_DEVICE" in os.environ:
        on_gpu = [item for item in on_gpu if not item.path.is_relative_to(Path(__file__).parent / "gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
