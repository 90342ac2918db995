"""Kill a search again and again, at random and at every named point, and see that nothing is lost.

python tools/crashtest.py                              (20 kills, some ten minutes)

python tools/crashtest.py --kills 100 --processes 2 --json kills.json

python tools/crashtest.py --scenario worker launcher --processes 2

A small search on digits runs once undisturbed. Then it runs in fresh directories, is killed with SIGKILL and started
again until it is finished. Checkpoints and signed masks must have the same bytes, and MLflow exactly one finished run
for each node. Says after each search where it was killed, and at the end how many kills of how many were survived, by
place. Exits with 1 at the first difference, and says where to look.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import psutil
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from harness.cli.parser import parse_command  # noqa: E402
from harness.common.files import FAULT_POINTS, FAULT_VARIABLE  # noqa: E402
from harness.lineage.nodes.record import CHECKPOINT, SIGNED_MASK  # noqa: E402
from harness.lineage.store import open_store  # noqa: E402
from tools.crash_scenarios import SCENARIOS, CrashedLaunch, workers_below  # noqa: E402

SEARCH = ["--model.name", "resnet8", "--model.width", "4", "--warmup-epochs", "2", "--level-epochs", "1"]
SEARCH += ["--num-levels", "2", "--checkpoint-every", "3", "--checkpoint-unit", "steps"]
AT_ONCE = {
    "split-written": 2,
    "database-made": 1,
    "run-created": 4,
    "files-sent": 4,
    "before-finished": 4,
    "node-written": 4,
}
"""Number of times that one search (its root and three levels) passes a rare fault point."""
OFTEN, NODE = 60, 4
"""The same number for frequent fault points, and for those of a commit."""
PATIENCE = 10.0
"""Timeout of a launch, as a multiple of the undisturbed launch. A longer launch counts as hanging."""


@dataclass(frozen=True)
class CrashTestOptions:
    """Number of kills, and the launches that they hit."""

    kills: int = 20
    """Processes to kill, in all."""
    processes: int = 1
    """Processes of each launch."""
    seed: int = 0
    """Chooses the points and times."""
    keep: bool = False
    """Keep the directories."""
    scenario: tuple[str, ...] = ()
    """Run these scenarios of `tools/crash_scenarios.py` instead, each once. "all" stands for all of them."""
    json: Path | None = None
    """Write the counts there, too, after every search."""


@dataclass
class Tally:
    """Count the kills by place, and the kills that the searches survived."""

    options: CrashTestOptions
    started: float = field(default_factory=time.monotonic)
    searches: int = 0
    survived: int = 0
    places: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """Number of kills so far."""
        return self.places.total()

    def line(self) -> str:
        """Return all counts in one line, with the places sorted by name."""
        places = ", ".join(f"{place} {count}" for place, count in sorted(self.places.items()))
        minutes = (time.monotonic() - self.started) / 60
        return (
            f"survived {self.survived} of {self.kills} kills in {self.searches} searches of {self.options.processes} "
            f"process(es), seed {self.options.seed}, {minutes:.0f} minutes: {places}"
        )

    def write(self) -> None:
        """Write the counts as JSON if --json is given."""
        if self.options.json is not None:
            numbers = {
                "kills": self.kills,
                "survived": self.survived,
                "places": dict(sorted(self.places.items())),
                "searches": self.searches,
                "processes": self.options.processes,
                "seed": self.options.seed,
                "seconds": round(time.monotonic() - self.started),
                "problems": self.problems,
            }
            self.options.json.write_text(json.dumps(numbers, indent=1) + "\n")


@dataclass
class SearchUnderTest:
    """One search in its own directory."""

    where: Path
    processes: int
    tracking_uri: str | None = None
    """MLflow's address. None: a database in `where`."""
    more: list[str] = field(default_factory=list)
    """Further options of the search."""
    environment: dict[str, str] = field(default_factory=dict)
    """Further environment variables."""

    def start(self, fault: str | None = None) -> subprocess.Popen[bytes]:
        """Start data preparation and the search in a new session.

        Args:
            fault: Fault point at which the process kills itself, or None.
        """
        # Phase: commands
        shape = ["--num_processes", str(self.processes), "--num_machines", "1", "--num_cpu_threads_per_process", "1"]
        shape += ["--mixed_precision", "no", "--dynamo_backend", "no"]
        shape += ["--multi_gpu", "--main_process_port", "0"] if self.processes > 1 else []
        accelerate = str(Path(sys.executable).with_name("accelerate"))
        prepare = [sys.executable, str(ROOT / "tools" / "prepare_data.py"), "digits", "--out", "data"]
        search = [accelerate, "launch", "-q", *shape, str(ROOT / "recipes" / "aws_digits.py"), *SEARCH, *self.more]
        script = " && ".join(shlex.join(command) for command in (prepare, search))

        # Phase: start
        environment = {name: value for name, value in os.environ.items() if name != FAULT_VARIABLE}
        environment |= {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": self.store}
        environment |= ({FAULT_VARIABLE: fault} if fault else {}) | self.environment
        with open(self.where / "log", "ab") as log:
            return subprocess.Popen(
                ["bash", "-c", script], cwd=self.where, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def workers(self, launch: CrashedLaunch) -> list[psutil.Process]:
        """Return the processes of a launch that train."""
        return workers_below(launch.pid)

    @property
    def store(self) -> str:
        """Tracking URI of this search."""
        return self.tracking_uri or f"sqlite:///{self.where / 'mlflow.db'}"

    def finished(self) -> bool:
        """Return whether the last launch finished."""
        try:
            return bool(json.loads((self.where / "runs" / "status.json").read_text())["status"] == "finished")
        except FileNotFoundError:
            return False

    def files(self) -> dict[str, str]:
        """Return {level and file name: SHA-256} of every checkpoint and signed mask."""
        found: dict[str, str] = {}
        for path in (self.where / "runs").glob("level-*/record.json"):
            record = json.loads(path.read_text())
            level, names = record["tags"]["level"], (CHECKPOINT, SIGNED_MASK)
            found |= {f"level {level} {name}": record["files"][name] for name in names}
        return found

    def problems(self, expected: Mapping[str, str]) -> list[str]:
        """Return all differences from the undisturbed search, and all faults in MLflow.

        Args:
            expected: The result of `files` for the undisturbed search.
        """
        files = self.files()
        found = [f"{name} differs" for name in sorted(expected.keys() | files) if expected.get(name) != files.get(name)]
        runs = open_store(self.where / "runs", self.store).summaries()
        keys = [run.key for run in runs]
        found += [f"{run.name} is {run.status} in MLflow" for run in runs if run.status != "FINISHED"]
        found += [f"{key[:16]} has {keys.count(key)} runs in MLflow" for key in set(keys) if keys.count(key) != 1]
        nodes = len(list((self.where / "runs").glob("*-*/record.json")))
        found += [f"{nodes} local runs, but {len(keys)} runs in MLflow"] if nodes != len(keys) else []
        found += [f"{path.name} was left behind" for path in (self.where / "runs").glob(".making-*")]
        return found


def main(options: CrashTestOptions) -> int:
    """Run the crash test; return 0 if all searches survived."""
    # Phase: undisturbed search
    generator = random.Random(options.seed)
    place = Path(tempfile.mkdtemp(prefix="crashtest-"))
    reference = SearchUnderTest(_new(place, "reference"), options.processes)
    started = time.monotonic()
    if reference.start().wait() != 0 or not reference.finished():
        print(f"the undisturbed search failed; see {reference.where / 'log'}", file=sys.stderr)
        return 1
    length = time.monotonic() - started
    expected = reference.files()
    if options.scenario:
        return _scenarios(options, place, expected, generator)

    # Phase: searches that are killed
    points = [f"{point}:{n}" for point in FAULT_POINTS for n in [generator.randint(1, _passed(point))]]
    generator.shuffle(points)
    tally = Tally(options)
    with tqdm(total=options.kills, unit="kill") as bar:
        while tally.kills < options.kills:
            tally.searches += 1
            trial = SearchUnderTest(_new(place, f"trial-{tally.searches}"), options.processes)
            killed = _kill_until_finished(trial, points, generator, length, options.kills - tally.kills, bar)
            tally.places.update(killed)
            tally.problems = trial.problems(expected)
            tally.survived += 0 if tally.problems else len(killed)
            tally.write()
            if tally.problems:
                print(f"{tally.line()}\n{'; '.join(tally.problems)}\nsee {trial.where}")
                return 1
            tqdm.write(f"search {tally.searches} gave the same bytes after kills at: {', '.join(killed)}")
            if not options.keep:
                shutil.rmtree(trial.where)
    print(tally.line())
    if not options.keep:
        shutil.rmtree(place)
    return 0


def _scenarios(options: CrashTestOptions, place: Path, expected: dict[str, str], generator: random.Random) -> int:
    """Run scenarios one after another. Return 0 if nothing was lost in any."""
    names = list(SCENARIOS) if options.scenario == ("all",) else list(options.scenario)
    if unknown := [name for name in names if name not in SCENARIOS]:
        raise SystemExit(f"error: unknown scenario {unknown[0]!r}; known: all, {', '.join(SCENARIOS)}")
    found: dict[str, list[str]] = {}
    for name in names:
        started = time.monotonic()
        found[name] = SCENARIOS[name](
            lambda directory: SearchUnderTest(_new(place, directory), options.processes), expected, generator
        )
        print(f"{name} ({time.monotonic() - started:.0f} s): {'; '.join(found[name]) or 'nothing lost'}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps({"processes": options.processes, "problems": found}, indent=1) + "\n")
    lost = any(found.values())
    if lost:
        print(f"see {place}")
    elif not options.keep:
        shutil.rmtree(place)
    return int(lost)


def _kill_until_finished(
    trial: SearchUnderTest, points: list[str], generator: random.Random, length: float, most: int, bar: tqdm[NoReturn]
) -> list[str]:
    """Launch a search repeatedly until it is finished, killing most launches.

    Kill at named fault points first, then at random times.

    Args:
        trial: The search.
        points: Fault points that are left. Used ones are removed.
        generator: Draws the random times.
        length: Seconds of the undisturbed launch.
        most: Largest number of kills.
        bar: Progress bar that counts kills.

    Returns:
        The place of each kill.
    """
    killed: list[str] = []
    while not trial.finished():
        if len(killed) >= most or len(killed) >= 5:  # enough kills, so let it finish
            if trial.start().wait(PATIENCE * length) != 0:
                raise SystemExit(f"a relaunch failed; see {trial.where / 'log'}")
        elif points:
            point = points.pop()
            if trial.start(point).wait(PATIENCE * length) != 0:
                _require_killed(trial)
                killed.append(point.partition(":")[0])
                bar.update()
        else:
            process = trial.start()
            try:
                if process.wait(generator.uniform(0.1, 0.8) * length) != 0:
                    raise SystemExit(f"a launch failed by itself; see {trial.where / 'log'}")
            except subprocess.TimeoutExpired:
                _kill(process.pid)
                process.wait()
                killed.append("random time")
                bar.update()
    return killed


def _require_killed(trial: SearchUnderTest) -> None:
    """Raise SystemExit if a launch failed without a kill."""
    try:
        status = json.loads((trial.where / "runs" / "status.json").read_text())["status"]
    except FileNotFoundError:
        return  # killed during data preparation
    if status == "failed":
        raise SystemExit(f"a launch failed by itself; see {trial.where / 'log'}")


def _kill(pid: int) -> None:
    """Kill a process and all its descendants.

    Killing the process group would miss the launcher's workers, which have their own sessions.
    """
    root = psutil.Process(pid)
    for process in (root, *root.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _passed(point: str) -> int:
    """Return a lower bound of how often a search passes a fault point."""
    return AT_ONCE.get(point, NODE if point.startswith("node") else 20 if point.startswith("state") else OFTEN)


def _new(place: Path, name: str) -> Path:
    """Create a directory and return its path."""
    (place / name).mkdir()
    return place / name


if __name__ == "__main__":
    sys.exit(main(parse_command(CrashTestOptions, description=__doc__)))
