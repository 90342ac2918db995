"""Delete runs and models that exist twice: MLflow's client repeats a request whose answer did not come."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.lineage.tracking.server import KEY_TAG, Server

if TYPE_CHECKING:
    from mlflow.entities import Run


def remove_duplicate_runs(server: Server) -> int:
    """Delete unfinished runs of nodes that have a finished run, with their models; return how many.

    Another process that is just filling one is told so by the server, and finds the finished one when it tries again.
    """
    if not server.is_remote:
        return 0
    client, removed = server.client(), 0
    condition = f"attributes.status != 'FINISHED' AND tags.`{KEY_TAG}` LIKE '%'"
    for run in client.search_runs(server.experiment_ids(), condition, max_results=1000):
        finished = server.run_with(run.data.tags[KEY_TAG])
        if finished is not None and finished.info.status == "FINISHED" and finished.info.run_id != run.info.run_id:
            client.delete_run(run.info.run_id)
            remove_models(server, run, keep=None)
            removed += 1
    return removed


def remove_models(server: Server, run: Run, keep: str | None) -> None:
    """Delete the logged models of a run that are not ready, except `keep`."""
    client = server.client()
    for model in client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"):
        if model.model_id != keep and str(model.status) != "READY":
            client.delete_logged_model(model.model_id)
