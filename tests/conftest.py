"""Configure the environment, hooks and fixtures shared by all tests.

Fixtures that only one test package uses are in the conftest of that package.
"""

from __future__ import annotations

import gc
import os
import secrets
import sys
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import pytest

# Set the environment before any test imports the libraries that read it.
# A test must never write to the user's own MLflow store. One thread per worker avoids oversubscribing the cores.
for _name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
    os.environ.pop(_name, None)
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
# libopencv-dev installs TBB, which numba prefers by default. FFCV's writer then never exits.
os.environ.setdefault("NUMBA_THREADING_LAYER", "omp")

# Rewrite assertions in helper modules too, so that their failures show the compared values.
pytest.register_assert_rewrite(*(f"tests.{room.stem}" for room in Path(__file__).parent.iterdir() if room.is_dir()))

from tests.made_once import made_once  # noqa: E402


def pytest_collection_finish() -> None:
    """Freeze all objects that exist after import.

    Accelerate runs a garbage collection before each training. Frozen objects are skipped, which makes it fast.
    """
    gc.collect()
    gc.freeze()


_short = ""
"""Node ID of the running test if it must not start Python, else "".

Tests of `make test-quick` must not, except test_rooms.py, which imports the package in a new interpreter.
"""

PYTHONS = ("python", "accelerate", "torchrun")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Record whether the test that runs may start Python."""
    global _short
    free = item.path.name == "test_rooms.py" or any(item.get_closest_marker(name) for name in ("long", "slow"))
    _short = "" if free else item.nodeid
    try:
        return (yield)
    finally:
        _short = ""


def _refuse_python(event: str, arguments: tuple[object, ...]) -> None:
    """Fail a test without the mark `long` that starts Python.

    Launchers and servers count as Python. This is an audit hook, so that it sees every way to start a process.
    """
    if event == "subprocess.Popen" and _short and Path(str(arguments[0])).name.startswith(PYTHONS):
        raise AssertionError(f"{_short} starts Python; mark it long")


sys.addaudithook(_refuse_python)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an MLflow SQLite database without runs, to be copied.

    Creating its tables takes seconds, so this happens once per test run.
    """
    from harness.lineage.tracking.server import Server

    def make(where: Path) -> None:
        Server(f"sqlite:///{where / 'mlflow.db'}", "test", where).client().search_experiments()

    return made_once(tmp_path_factory, "empty_store", make) / "mlflow.db"


@pytest.fixture(autouse=True, scope="session")
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the list of trusted Python files out of the user's home."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
def forget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function that makes this process one of another user, who has named no Python file yet."""
    from harness.common import trusted
    from harness.models import network, sources

    def forget() -> None:
        (state := tmp_path / "state" / secrets.token_hex(4)).mkdir(parents=True)
        monkeypatch.setenv("XDG_STATE_HOME", str(state))
        monkeypatch.setattr(trusted, "_named", set())
        monkeypatch.setattr(trusted, "_said", set())
        network._inspected.cache_clear()
        sources._executed.cache_clear()

    return forget


@pytest.fixture
def stranger(tmp_path: Path, forget: Callable[[], None]) -> Path:
    """Return the directory of a user who has named no Python file yet."""
    forget()
    return tmp_path


@pytest.fixture(autouse=True)
def messages() -> None:
    """Show log messages on standard error, as every command does."""
    from harness.common.logging import show_messages

    show_messages("normal")


def dealt_out(items: Sequence[pytest.Item], workers: int) -> list[pytest.Item]:
    """Reorder tests so that each worker runs long modules first.

    pytest-xdist gives each worker a contiguous share of the list. Long tests at the end of one share would leave the
    other workers idle. Tests of one module stay together.

    Args:
        items: All collected tests.
        workers: Number of test processes.

    Returns:
        The same tests, in the order in which they should run.
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
    """Distribute the tests over the workers, and skip GPU tests.

    Tests marked gpu are skipped if there is no GPU. HARNESS_GPU_TESTS_DEVICE=label or =cpu runs those in tests/gpu
    without a GPU. See tests/gpu/conftest.py.
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
