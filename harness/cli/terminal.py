"""Output of the commands on standard output."""

from __future__ import annotations

import json
import re
import shlex
import sys

from harness.common.machine import launch_command
from harness.common.program import MODULE, again, command, launch_file, runs_option
from harness.common.tables import print_table
from harness.config import TicketConfig
from harness.distributed.world import World
from harness.experiment.comparison import Comparison, Question
from harness.experiment.experiment import Experiment
from harness.experiment.search import SearchResult
from harness.lineage.store import DEFAULT_EXPERIMENT
from harness.runs.run import FinishedRun


def print_search(experiment: Experiment, result: SearchResult) -> None:
    """Print the levels as a table, and the commands that use the ticket (rank 0)."""
    if not experiment.world.is_main:
        return
    rows = [
        {
            "level": str(node.checkpoint.level),
            "density": f"{node.signed_mask.density:.4f}",
            "test error %": f"{node.metric('test_error_percent'):.2f}",
            "run": run_name(node),
        }
        for node in result.levels
    ]
    print_table(rows, numbers=("level", "density", "test error %"), whole=("run",))
    words = f"train --ticket {run_name(result.ticket)} --kind signed_mask --init-seed 2{store_options(experiment)}"
    print(
        f"\nTrain this signed mask on a fresh initialisation:\n  {command(words, launcher_of(experiment.world))}\n"
        "Browse the runs:\n  "
        f"{browse_command(experiment)}"
    )


def launcher_of(world: World) -> str:
    """Return the launcher of this process and its options, such as `accelerate launch --config_file FILE`.

    A single process has none, and the result is "".
    """
    if world.size == 1:
        return ""
    started = shlex.split(launch_command())
    if started[0] == "accelerate":
        scripts = [index for index, word in enumerate(started) if word in (sys.argv[0], MODULE)]
        if scripts:
            return shlex.join(started[: scripts[0] - (started[scripts[0]] == MODULE)])
    # Accelerate starts several CPU processes only with a configuration file.
    file = f"--config_file {launch_file('cpu_2_processes.yaml')} " if world.device.type == "cpu" else ""
    return f"accelerate launch {file}--num_processes {world.size}"


def store_options(experiment: Experiment) -> str:
    """Return the options of store and trust for a training or comparison, as far as they differ from their defaults."""
    config, usual = experiment.config, TicketConfig("")
    named = "" if config.experiment == usual.experiment else f" --experiment {shlex.quote(config.experiment)}"
    return f"{lineage_options(experiment)}{named}{' --trust-code' if config.trust_code else ''}"


def lineage_options(experiment: Experiment) -> str:
    """Return the options for a command of `lineage` that finds the runs of this launch.

    These commands read every MLflow experiment and execute no code of users, so they take fewer options than trainings.
    """
    config = experiment.config
    return runs_option(config.runs) + (" --offline" if config.offline else "")


def print_training(experiment: Experiment, node: FinishedRun, sgd_seed: int) -> None:
    """Print the test error of a final training, and the commands that use it (rank 0)."""
    if not experiment.world.is_main or node.record is None:
        return
    # Phase: the result.
    error, run = node.metric("test_error_percent"), run_name(node)
    print(f"{node.record.name}: test error {error:.2f} %  run {run}")

    # Phase: the next commands. The second training has the options of this one, and another seed.
    launcher = launcher_of(experiment.world)
    options = re.sub(r" --sgd[-_]seed[ =]\S+", "", " " + shlex.join(sys.argv[1:]))
    second = again([*shlex.split(options), "--sgd-seed", str(sgd_seed + 1)], launcher)
    compared = command(f"compare stability {run} RUN_OF_THE_SECOND{store_options(experiment)}", launcher)
    print(
        f"\nMeasure SGD-noise stability with a second training:\n  {second}\n  {compared}\n"
        f"Show the runs that it came from:\n  {command(f'lineage tree {run}{lineage_options(experiment)}')}"
    )


def print_comparison(question: Question, result: Comparison, epsilon: float | None, *, as_json: bool) -> None:
    """Print a barrier curve. With ε, also print whether the networks are connected."""
    # Phase: JSON.
    curve, run = result.curve, result.run_id or result.key
    verdict = {} if epsilon is None else {"epsilon": epsilon, "connected": curve.connected(epsilon)}
    if as_json:
        print(json.dumps({"question": question, "run": run, **curve.to_dict(), **verdict}))
        return

    # Phase: the curve. Its end rows name the two networks.
    copied = question in ("norm_init", "signed_init")
    at_0, at_1 = ("the copy", "the ticket") if copied else ("RUN_B", "RUN_A")
    first, last = result.ends[0] if copied else f"{at_0}: {result.ends[0]}", f"{at_1}: {result.ends[1]}"
    networks = [first, *[""] * (len(curve.alphas) - 2), last]
    points = zip(curve.alphas, curve.error_percent, networks, strict=True)
    rows = [
        {"alpha": f"{alpha:.2f}", "test error %": f"{error:.2f}", "network": network}
        for alpha, error, network in points
    ]
    print_table(rows, numbers=("alpha", "test error %"))
    if curve.bn_images:
        print(
            f"BatchNorm statistics re-estimated from {curve.bn_images:,} training images. "
            f"With the recorded statistics, test errors are {curve.recorded_error_a_percent:.2f} % ({at_1}) "
            f"and {curve.recorded_error_b_percent:.2f} % ({at_0})"
        )

    # Phase: barrier and verdict.
    if copied:
        print(f"error of the copy (α = 0) − the ticket's {curve.error_difference:+.2f} points")
    print(f"excess over the straight line: {curve.barrier_above_line:.2f} points")
    print(f"barrier {curve.barrier:.2f} points, {curve.floor:.2f} of them from the difference of the two ends")
    if epsilon is not None:
        word, sign = ("connected", "≤") if verdict["connected"] else ("not connected", ">")
        print(f"{word}: barrier {curve.barrier:.2f} {sign} ε = {epsilon:.2f}")
    elif not copied:
        print("connected? give --epsilon or --dense")
    print(f"plot {result.directory / 'barrier.png'}\nrun  {run}")


def run_name(node: FinishedRun) -> str:
    """Return the MLflow run ID, or the key of a run that is not delivered yet. Tools accept both."""
    return node.run_id or node.key


def browse_command(experiment: Experiment) -> str:
    """Return the command that opens the MLflow UI on the runs of this launch, or lists them if they stay local."""
    options = lineage_options(experiment)
    if experiment.config.offline:
        return command(f"lineage list{options}")
    name = experiment.store.server.experiment
    if name != DEFAULT_EXPERIMENT:
        options = f" --experiment {shlex.quote(name)}{options}"
    return command(f"lineage ui{options}")
