"""Output of the commands on standard output."""

from __future__ import annotations

import json
import shlex

from harness.common.tables import print_table
from harness.config import TicketConfig
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
    launcher = "python" if experiment.world.size == 1 else "accelerate launch"
    print(
        f"\nTrain this signed mask on a fresh initialisation:\n  {launcher} recipes/train_ticket.py "
        f"--ticket {run_name(result.ticket)} --kind signed_mask --init-seed 2{_store_options(experiment)}\n"
        "Browse the runs:\n  "
        f"{ui_command(experiment)}"
    )


def _store_options(experiment: Experiment) -> str:
    """Return the options of the launch's store that differ from their defaults."""
    config, usual = experiment.config, TicketConfig("")
    words = [] if config.runs == usual.runs else ["--runs", str(config.runs)]
    words += [] if config.experiment == usual.experiment else ["--experiment", config.experiment]
    words += ["--offline"] if config.offline else []
    return "".join(f" {shlex.quote(word)}" for word in words)


def print_training(experiment: Experiment, node: FinishedRun) -> None:
    """Print the test error of a final training (rank 0)."""
    if not experiment.world.is_main or node.record is None:
        return
    error = node.metric("test_error_percent")
    print(f"{node.record.name}: test error {error:.2f} %  run {run_name(node)}")


def print_comparison(question: Question, result: Comparison, epsilon: float | None, *, as_json: bool) -> None:
    """Print a barrier curve. With ε, also print whether the networks are connected."""
    curve, run = result.curve, result.run_id or result.key
    verdict = {} if epsilon is None else {"epsilon": epsilon, "connected": curve.connected(epsilon)}
    if as_json:
        print(json.dumps({"question": question, "run": run, **curve.to_dict(), **verdict}))
        return
    points = zip(curve.alphas, curve.error_percent, strict=True)
    rows = [{"alpha": f"{alpha:.2f}", "test error %": f"{error:.2f}"} for alpha, error in points]
    print_table(rows, numbers=("alpha", "test error %"))
    if question in ("norm_init", "signed_init"):
        print(f"error of the copy (α = 0) − the ticket's {curve.error_difference:+.2f} points")
    print(f"above the straight line {curve.barrier_above_line:.2f} points")
    print(f"barrier {curve.barrier:.2f} points (at least {curve.floor:.2f} by definition: half the ends' difference)")
    if epsilon is not None:
        word, sign = ("connected", "≤") if verdict["connected"] else ("not connected", ">")
        print(f"{word}: barrier {curve.barrier:.2f} {sign} ε = {epsilon:.2f}")
    print(f"plot {result.directory / 'barrier.png'}\nrun  {run}")


def run_name(node: FinishedRun) -> str:
    """Return the MLflow run ID, or the key of a run that is not delivered yet. Tools accept both."""
    return node.run_id or node.key


def ui_command(experiment: Experiment) -> str:
    """Return the command that opens the MLflow UI on the runs of this launch."""
    name = experiment.store.server.experiment
    options = "" if name == DEFAULT_EXPERIMENT else f" --experiment {shlex.quote(name)}"
    return f"python tools/lineage.py ui{options}"
