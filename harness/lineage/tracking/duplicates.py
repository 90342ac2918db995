"""Delete duplicate runs and models. MLflow's client creates them when it retries a request that timed out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.lineage.tracking.server import KEY_TAG, Server

if TYPE_CHECKING:
    from mlflow.entities import Run


def remove_duplicate_runs(server: Server) -> int:
    """Delete unfinished runs whose key has a finished run, and their models. Return the number of deleted runs.

    A process that is still delivering such a run gets an error from the server. Its retry finds the finished run.
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
    """Delete the logged models of a run that are not READY, except `keep`."""
    client = server.client()
    for model in client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"):
        if model.model_id != keep and str(model.status) != "READY":
            client.delete_logged_model(model.model_id)
