"""Run every test and benchmark that needs a GPU within a time limit: the most important first.

python tools/benchmarks/sitting.py --seconds 270 --json sitting.json

Each part has a process of its own, stops no other, and keeps its results when its share of the time is over. A missing
package costs only its own rows. Without a GPU every part runs at a tiny size: that tries the code, not the speed.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import pkgutil
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import util
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # run as a script
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import harness.training.loop  # noqa: E402, F401  # imported before forking the parts; it does not initialise CUDA
from harness.common.files import write_atomically  # noqa: E402
from harness.distributed.world import World  # noqa: E402
from tools.benchmarks.measure import ROOT, Goal, Row, about, number, table  # noqa: E402
from tools.benchmarks.pytest_log import LINES  # noqa: E402

PARTS = {
    "tests": (0.5, ""),
    "waits": (0.2, "steps:waits"),
    "steps": (0.4, "steps:steps"),
    "ddp": (0.2, "steps:ddp"),
    "decoding": (0.15, "loaders:decoding"),
    "compiled": (0.6, "steps:compiled"),
    "small": (0.6, "steps:small"),
    "barrier": (0.3, "steps:barrier_on_device"),
    "searches": (1.0, ""),
}
"""Parts in order of importance: (largest share of the whole budget, module and function of the benchmark)."""
START_SHARE, GRACE_SECONDS, ENDING_SECONDS = 0.4, 10.0, 1.0
"""Largest share of the budget for the device description, seconds until a part that should stop is killed, and seconds
reserved for start and exit of Python."""
COMPILED, SMALL = ("reduce-overhead, batch 32", "default, batch 256"), ("resnet20", "mobilenet_v2_cifar")
GOALS = {
    **{("tests", name): Goal(most=0) for name in ("failed tests", "tests without a result")},
    ("waits", "waits"): Goal(most=0),
    ("steps", "aws, batch 256 [images/s]"): Goal(least=4000),
    ("steps", "aws, batch 32 [images/s]"): Goal(least=3500),
    **{("steps", f"aws / plain, batch {batch}"): Goal(least=0.98) for batch in (256, 128, 64, 32)},
    ("compiled", "aws, reduce-overhead, batch 32 [images/s]"): Goal(least=3500),
    ("compiled", "aws, default, batch 256 [images/s]"): Goal(least=5500),
    **{("compiled", f"aws / plain, {how}"): Goal(least=0.98) for how in COMPILED},
    **{("compiled", f"graphs compiled anew, {how}"): Goal(most=0) for how in COMPILED},
    **{("small", f"aws by CUDA graphs / published way, {name}"): Goal(least=5) for name in SMALL},
    ("barrier", "ours / plain"): Goal(least=1),
}
"""Limits of measured values on one H200 in bf16, by part and row."""
TESTS_ON_CPU = ("tests/gpu/test_masks_on_gpu.py", "tests/gpu/test_data_on_gpu.py")  # all of them would take minutes
SEARCH = {
    True: ("recipes/aws_fashion_mnist.py", "--precision", "bf16", "--checkpoint-every", "0.5"),
    False: ("recipes/aws_digits.py", "--num-levels", "1", "--warmup-epochs", "1", "--level-epochs", "1"),
}
SAVING_SECONDS = 8.0  # time for a search to save its state after SIGTERM


@dataclass(frozen=True)
class Outcome:
    """Result of one part: its status, and the rows that it measured."""

    part: str
    status: str  # done, stopped (by the time limit), failed, crashed or not run
    detail: str = ""
    rows: tuple[Row, ...] = ()
    seconds: float = 0.0

    def __str__(self) -> str:
        lines = [f"{self.part}: {self.status}{f': {self.detail}' if self.detail else ''} ({self.seconds:.0f} s)"]
        for row in self.rows:
            sides = "" if row.ours is None else f"  {number(row.ours)} against {number(row.reference)}"
            lines.append(f"    {row.name}  {number(row.value)}{sides}  {row.note}".rstrip())
        return "\n".join(lines)


def measure(part: str, world: Any, seconds: float, send: Callable[[Row], None]) -> tuple[str, str]:
    """Run a benchmark and pass each row to `send`.

    Args:
        part: Name of the part.
        world: Device and precision.
        seconds: Time limit. It is checked after each row.
        send: Called with each row.

    Returns:
        (status, detail) as in `Outcome`.
    """
    stop_at = time.monotonic() + seconds
    try:
        for row in pkgutil.resolve_name(f"tools.benchmarks.{PARTS[part][1]}")(world):
            send(row)
            if time.monotonic() > stop_at:
                return "stopped", "its time limit was reached"
    except ModuleNotFoundError as error:
        return "not run", f"needs {(error.name or str(error)).split('.')[0]}"
    except Exception as error:
        traceback.print_exc()
        where = traceback.extract_tb(error.__traceback__)[-1]
        words = (str(error).splitlines() or [""])[0][:200]
        return "failed", f"{type(error).__name__}: {words} at {os.path.basename(where.filename)}:{where.lineno}"
    return "done", ""


def on_device(part: str, seconds: float, send: Callable[[Any], None]) -> tuple[str, str]:
    """Run a benchmark on this machine's device.

    The part "about" only sends a description of the machine.
    """
    world = World("bf16")
    torch.backends.cudnn.benchmark = False
    if world.device.type == "cpu":
        torch.set_num_threads(1)  # the networks are too small for several threads
    torch.ones(1, device=world.device).sum().item()  # fail early on a broken device
    if part != "about":
        return measure(part, world, seconds, send)
    send({"on_gpu": world.device.type == "cuda"} | about())
    return "done", ""


def ask(part: str, seconds: float, kill_after: float, log: Path, run: Callable[..., Any] = on_device) -> Outcome:
    """Run one benchmark in a forked process.

    Args:
        part: Name of the part.
        seconds: Time after which the benchmark should stop by itself.
        kill_after: Time after which its process is killed.
        log: File for its output.
        run: Function to run in the process.

    Returns:
        The outcome. It has all rows measured so far, even after a crash.
    """
    # Phase: start
    started, rows, fork = time.monotonic(), list[Any](), multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()

    def work() -> None:
        os.setsid()
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        theirs.send(run(part, seconds - (time.monotonic() - started), theirs.send))

    process = fork.Process(target=work)
    process.start()
    theirs.close()

    # Phase: receive rows until the result, the time limit or a crash
    status, detail = "stopped", "killed at its time limit"
    try:
        while ours.poll(max(0.0, started + kill_after - time.monotonic())):
            if isinstance(answer := ours.recv(), tuple):
                status, detail = answer
                break
            rows.append(answer)
    except EOFError:
        process.join(5)
        words = [line[:200] for line in log.read_text(errors="replace").splitlines() if line.strip()]
        status, detail = "crashed", ": ".join([ended_by(process.exitcode or 0), *words[-1:]])

    # Phase: clean up
    kill(process.pid or 0)
    process.kill()  # in case it has not made its process group yet
    process.join(5)
    return Outcome(part, status, detail, tuple(rows), time.monotonic() - started)


def ended_by(code: int) -> str:
    """Describe an exit code, or the signal that killed the process."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def kill(pid: int) -> None:
    """Kill a process group by the PID of its leader."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def run_tests(directory: Path, seconds: float, on_gpu: bool, tests: Sequence[str] = ()) -> Outcome:
    """Run the GPU tests for at most `seconds`.

    They run in up to eight processes.

    Args:
        directory: Directory for logs.
        seconds: Time limit.
        on_gpu: Run all GPU tests on the GPU; otherwise run a few on the CPU.
        tests: Tests to run instead.

    Returns:
        The counted tests. After a crash only the running test has no result.
    """
    # Phase: command
    if util.find_spec("pytest") is None:
        return Outcome("tests", "not run", "needs pytest")
    processes = min(8, len(os.sched_getaffinity(0))) if on_gpu else 1
    shared = [] if util.find_spec("xdist") is None else ["-n", str(processes)]
    asked = tests or (["tests/gpu"] if on_gpu else TESTS_ON_CPU)
    command = [sys.executable, "-m", "pytest", "-p", "tools.benchmarks.pytest_log", *shared, *asked]
    lines, device = directory / "tests.txt", {} if on_gpu else {"HARNESS_GPU_TESTS_DEVICE": "cpu"}
    own = {LINES: str(lines), "OMP_NUM_THREADS": "1"} | device

    # Phase: run, then read the outcomes
    code, took = run_commands([command], [directory / "tests.log"], own, seconds, 0)
    found: dict[str, str] = {}
    for line in lines.read_text().splitlines() if lines.exists() else ():
        outcome, _, test = line.partition(" ")
        if found.get(test, "begun") == "begun" or outcome == "failed":
            found[test] = outcome
    return count_tests(found, code[0], took, processes if shared else 1)


def count_tests(found: dict[str, str], code: int | None, seconds: float, processes: int = 1) -> Outcome:
    """Count tests by outcome.

    Args:
        found: {test: passed, failed, skipped or begun}.
        code: Exit code of pytest, or None if it was stopped.
        seconds: Duration.
        processes: Number of processes, for the report.

    Returns:
        The outcome. It has a row "failed tests" of 0 only if all tests ran, so that a stopped run cannot meet the goal.
    """
    if not found:
        why = "too slow" if code is None else ended_by(code)
        return Outcome("tests", "failed", f"no test began ({why})", (), seconds)
    counts, whole = Counter(found.values()), code is not None and "begun" not in found.values()
    named = [f"LOST {test}" if one == "begun" else test for test, one in found.items() if one in ("failed", "begun")]
    rows = [Row("passed tests", counts["passed"]), Row("skipped tests", counts["skipped"])]
    for name, kind in (("failed tests", "failed"), ("tests without a result", "begun")):
        if counts[kind] or (whole and counts["passed"]):
            rows.append(Row(name, counts[kind], note=f"on {processes} process(es); {'; '.join(named)}"))
    status = "stopped" if code is None else "failed" if counts["failed"] else "done" if whole else "crashed"
    return Outcome("tests", status, "its time limit was reached" if code is None else "", tuple(rows), seconds)


def run_searches(directory: Path, runs: Path, data: Path, seconds: float, on_gpu: bool) -> Outcome:
    """Run two searches with different sgd_seeds in parallel for at most `seconds`.

    Args:
        directory: Directory for logs.
        runs: Directory of the runs. A later call continues the searches in it.
        data: Directory of the prepared data.
        seconds: Time limit.
        on_gpu: Use the GPU search; otherwise a small one.
    """
    # Phase: commands
    if missing := [name for name in ("tyro", "tqdm") if util.find_spec(name) is None]:
        return Outcome("searches", "not run", f"needs {', '.join(missing)}")
    name = "fashion_mnist" if on_gpu else "digits"
    if not (data / name / "train.safetensors").is_file():
        return Outcome("searches", "not run", f"needs {data / name}: python tools/prepare_data.py {name} --out {data}")
    settings = ["--data.loader", "memory", "--data.directory", str(data), "--runs", str(runs), "--offline"]
    commands = [[sys.executable, *SEARCH[on_gpu], *settings, "--sgd-seed", seed] for seed in ("1", "2")]
    logs = [directory / f"search-{seed}.log" for seed in (1, 2)]
    own = {} if on_gpu else {"OMP_NUM_THREADS": "1"}
    codes, took = run_commands(commands, logs, own, seconds - SAVING_SECONDS, SAVING_SECONDS)

    # Phase: report finished levels
    records = [json.loads(path.read_text()) for path in sorted(runs.glob("level-*/record.json"))]
    rows = [Row("levels", len(records))]
    for record in records:
        metrics = {name: value for name, value, *_ in record["metrics"]}
        name = f"seed {record['config']['search']['sgd_seed']}, level {record['config']['level']} [test error %]"
        rows.append(Row(name, metrics["test_error_percent"], note=f"{metrics['images_per_second']:,.0f} images/s"))
    broken = [log.read_text()[-200:].splitlines()[-1:] for code, log in zip(codes, logs, strict=True) if code]
    if None in codes:
        return Outcome("searches", "stopped", "the same command resumes them", tuple(rows), took)
    return Outcome("searches", "failed" if broken else "done", "".join(broken[0] if broken else ()), tuple(rows), took)


def run_commands(
    commands: Sequence[list[str]], logs: Sequence[Path], own: dict[str, str], seconds: float, grace: float
) -> tuple[list[int | None], float]:
    """Run commands in parallel.

    Args:
        commands: Commands to run.
        logs: Output file of each command.
        own: Additional environment variables.
        seconds: Time after which SIGTERM is sent.
        grace: Further time after which the processes are killed.

    Returns:
        ([exit code, or None if it had to be stopped], seconds).
    """
    # Phase: start
    environment = {n: v for n, v in os.environ.items() if not n.startswith("PYTEST_")} | {"PYTHONPATH": str(ROOT)} | own
    settings: dict[str, Any] = {"cwd": ROOT, "env": environment, "start_new_session": True}
    started, processes, codes = time.monotonic(), [], list[int | None]()
    try:
        for command, log in zip(commands, logs, strict=True):
            with log.open("wb") as output:
                processes.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, **settings))
        # Phase: wait twice; exit codes count only from the first wait
        for until in (started + seconds, started + seconds + grace):
            while any(process.poll() is None for process in processes) and time.monotonic() < until:
                time.sleep(0.1)
            codes = codes or [process.poll() for process in processes]
            for process in processes:
                process.send_signal(signal.SIGTERM)  # no effect on finished processes
    finally:
        for process in processes:
            kill(process.pid)
            process.wait(5)
    return codes, time.monotonic() - started


def judged(outcomes: Sequence[Outcome], on_gpu: bool) -> list[dict[str, Any]]:
    """Compare all goals with the measured values.

    A run on the CPU counts as not measured.
    """
    values = {(one.part, row.name): row.value for one in outcomes for row in one.rows if on_gpu}
    rows = [(goal.verdict(values.get(of)), *of, str(goal), values.get(of)) for of, goal in GOALS.items()]
    return [dict(zip(("verdict", "part", "value", "goal", "measured"), row, strict=True)) for row in rows]


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line.

    argparse is used, because tyro may be missing on a GPU machine.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=budget, default=270.0, help="budget, start included (270)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these parts, in their order")
    parser.add_argument("--json", type=Path, help="write all that was measured here, anew after each part")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where the prepared Fashion-MNIST is")
    parser.add_argument("--runs", type=Path, default=Path("runs/sitting"), help="keep searches here, and continue them")
    parser.add_argument("--logs", type=Path, help="keep the output of tests, parts and searches in this folder")
    return parser.parse_args(words)


def budget(text: str) -> float:
    """Parse a positive, finite number of seconds."""
    if not 0 < (seconds := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} seconds: give a finite number above 0")
    return seconds


def main(arguments: argparse.Namespace) -> int:
    """Run all parts within `--seconds` and write the report.

    Returns:
        0 if the device works and no part failed or crashed. Parts stopped by their time limit are no failure.
    """
    # Phase: find the device
    ends = time.monotonic() + arguments.seconds - ENDING_SECONDS
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit("stopped"))  # exit cleanly and end child processes
    outcomes: list[Outcome] = []
    with TemporaryDirectory() as temporary:
        directory = (arguments.logs or Path(temporary)).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        log = directory / "parts.log"
        first = ask("about", arguments.seconds, START_SHARE * arguments.seconds, log)
        head: Any = {**first.rows[0]} if first.rows else {"hardware": f"unknown: {first.detail}"}  # type: ignore[dict-item]
        on_gpu = head.pop("on_gpu", Path("/dev/nvidiactl").exists())
        head |= {"command": shlex.join(["python", *sys.argv]), "budget": f"{arguments.seconds:g} s"}
        print(table(list(head.items())))
        print("" if on_gpu else "cpu: tries the code, not the speed", flush=True)

        # Phase: run one part after another; write results after each, because the process may be killed
        for part in (part for part in PARTS if part in arguments.only):
            left = ends - time.monotonic()
            seconds = min(PARTS[part][0] * arguments.seconds, left)
            if left <= 0:
                outcome = Outcome(part, "not run", f"the budget of {arguments.seconds:g} s was used up")
            elif part == "tests":
                outcome = run_tests(directory, seconds, on_gpu)
            elif part == "searches":
                runs = arguments.runs if on_gpu else directory / "runs"
                outcome = run_searches(directory, runs.resolve(), arguments.data.resolve(), seconds, on_gpu)
            elif first.status != "done":
                outcome = Outcome(part, "not run", first.detail)
            else:
                outcome = ask(part, seconds, min(seconds + GRACE_SECONDS, left), log)
            outcomes.append(outcome)
            print(outcome, flush=True)
            if arguments.json is not None:
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                result = {"about": head, "parts": list(map(asdict, outcomes)), "goals": judged(outcomes, on_gpu)}
                text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
                write_atomically(arguments.json, text.encode(), durable=False)

    # Phase: goals and exit code
    goals = judged(outcomes, on_gpu)
    print("\n" + table([[*map(str, list(goal.values())[:-1]), number(goal["measured"])] for goal in goals]))
    broken = any(outcome.status in ("failed", "crashed") for outcome in (first, *outcomes))
    return 1 if broken or first.status != "done" else 0


if __name__ == "__main__":
    try:
        sys.exit(main(parse(sys.argv[1:])))
    except KeyboardInterrupt:
        sys.exit("interrupted")
