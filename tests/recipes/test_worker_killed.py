"""Kill one worker of two: the launch ends, and the same command continues to the same bytes.

This is the short form of `tools/crashtest.py --scenario worker`. test_interrupted.py kills the launcher alone.
test_server_faults.py loses the server between two calls.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.recipes.launching import LAUNCH, LIGHT, REPOSITORY, TINY, elsewhere
from tests.recipes.test_interrupted import SAVING, assert_whole, files, wait_until
from tests.warm import Running
from tools.crash_scenarios import worker_alone

pytestmark = pytest.mark.long


@dataclass
class WarmSearch:
    """The tests' tiny search by two processes, which are forks of a process with loaded libraries."""

    where: Path
    tracking_uri: str | None = None
    more: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def start(self) -> Running:
        """Launch the search with two workers."""
        shape = ["--num_processes", "2", "--multi_gpu", "--main_process_port", "0"]
        command = [*LAUNCH, *shape, str(REPOSITORY / "recipes" / "aws_digits.py"), *TINY, *LIGHT, *SAVING, *self.more]
        more = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **self.environment}
        return Running(self.where, *command, log=self.where / "log", **more)

    def workers(self, launch: object) -> list[psutil.Process]:
        """Return both workers. As forks, they have no environment that others can read."""
        assert isinstance(launch, Running)
        return psutil.Process(launch.pid).children()

    @property
    def store(self) -> str:
        """The tracking URI."""
        return self.tracking_uri or f"sqlite:///{self.where / 'mlflow.db'}"

    def problems(self, expected: dict[str, str]) -> list[str]:
        """Return the files that differ, after checking MLflow's runs."""
        assert_whole(self.where)
        found = files(self.where)
        return [name for name in sorted(expected | found) if expected.get(name) != found.get(name)]


def test_a_worker_killed_alone_loses_nothing(by_two: tuple[Path, list[str]], tmp_path: Path) -> None:
    search = WarmSearch(elsewhere(by_two[0], tmp_path))
    assert worker_alone(lambda name: search, files(by_two[0]), random.Random(1)) == []


TORCHRUN = [str(Path(sys.executable).with_name("torchrun")), "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
TORCHRUN += ["--rdzv_endpoint", "localhost:0"]
ACCELERATE = [*LAUNCH, "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "launcher",
    [
        TORCHRUN,
        pytest.param([*ACCELERATE, "--rdzv_backend", "c10d"], marks=SLOW),
        pytest.param(ACCELERATE, marks=SLOW),  # static rendezvous
    ],
    ids=["torchrun", "accelerate-c10d", "accelerate"],
)
def test_a_launcher_with_restarts_resumes_by_itself(
    by_two: tuple[Path, list[str]], tmp_path: Path, launcher: list[str]
) -> None:
    where = elsewhere(by_two[0], tmp_path)
    command = [*launcher, "--max_restarts", "1", str(REPOSITORY / "recipes" / "aws_digits.py"), *TINY, *LIGHT, *SAVING]
    launch = Running(where, *command, log=where / "log", OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true")
    wait_until(lambda: list((where / "runs").glob(".making-level-*/state-*")), 200)
    psutil.Process(json.loads((where / "runs" / "status.json").read_text())["pid"]).kill()
    code, said = launch.wait(200), (where / "log").read_text()
    assert code == 0 and "resumes at epoch" in said and "could not join" not in said, said
    assert files(where) == files(by_two[0])
    assert_whole(where)
