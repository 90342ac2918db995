"""What a person reads in the terminal when a launch is done."""

from __future__ import annotations

from harness.experiment import Experiment, Node
from harness.lineage.store import redact
from harness.search import SearchResult


def print_search(experiment: Experiment, result: SearchResult) -> None:
    """Print a line for each level and how to use the deepest ticket (rank 0)."""
    if not experiment.world.is_main:
        return
    print(f"{'level':>5} {'density':>8} {'test error %':>13}  run")
    for node in result.levels:
        level, density = node.checkpoint.level, node.signed_mask.density
        print(f"{level:>5} {density:>8.4f} {node.metric('test_error_percent'):>13.2f}  {run_name(node)}")
    print(
        "\nTrain this signed mask on a fresh initialisation:\n  accelerate launch recipes/train_ticket.py "
        f"--ticket {run_name(result.ticket)} --kind signed_mask --init-seed 2\nBrowse the runs:\n  "
        f"{ui_command(experiment)}"
    )


def print_training(experiment: Experiment, node: Node) -> None:
    """Print what a final training reached (rank 0)."""
    if not experiment.world.is_main or node.record is None:
        return
    error = node.metric("test_error_percent")
    print(f"{node.record.name}: test error {error:.2f} %  run {run_name(node)}")


def run_name(node: Node) -> str:
    """Return a node's MLflow run ID, or its key where it has not been delivered yet; tools take either."""
    return node.run_id or node.key


def ui_command(experiment: Experiment) -> str:
    """Return the command that opens the MLflow UI on the store in use."""
    uri = redact(experiment.store.tracking_uri or "sqlite:///mlflow.db")
    if uri.startswith("http"):
        return f"open {uri}/#/?workflowType=machine_learning"
    return f"mlflow ui --backend-store-uri {uri}   # then http://localhost:5000/#/?workflowType=machine_learning"
