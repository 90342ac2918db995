"""Delete duplicate runs and models.

MLflow's client creates them when it retries a request that timed out. Launches on two hosts can create them, too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from harness.lineage.nodes.contents import conflict, differing, suspects
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.tracking.server import KEY_TAG, ORIGIN_TAG, Server, summary_of

if TYPE_CHECKING:
    from mlflow.entities import Run

_log = logging.getLogger(__name__)


def remove_duplicate_runs(server: Server) -> int:
    """Delete unfinished runs whose key has a finished run, and their models. Return the number of deleted runs.

    A process that is still delivering such a run gets an error from the server. Its retry finds the finished run.
    """
    client, removed = server.client(), 0
    condition = f"attributes.status != 'FINISHED' AND tags.`{KEY_TAG}` LIKE '%'"
    for run in client.search_runs(server.experiment_ids(), condition, max_results=1000):
        finished = server.run_with(run.data.tags[KEY_TAG])
        if finished is not None and finished.info.status == "FINISHED" and finished.info.run_id != run.info.run_id:
            client.delete_run(run.info.run_id)
            remove_models(server, run, keep=None)
            removed += 1
    return removed


def merge_equal_runs(server: Server, runs: Iterable[RunSummary]) -> list[str]:
    """Keep the oldest of several finished runs with one key and equal contents. The IDs of the others find it.

    Returns:
        One line for each key whose runs have different contents. These runs stay.
    """
    # Phase: group the runs by key, the oldest first.
    groups: dict[str, list[RunSummary]] = {}
    for node in sorted(runs, key=lambda node: (node.started_ms, str(node.run_id))):
        groups.setdefault(node.key, []).append(node)

    # Phase: compare each run with the oldest one.
    problems = []
    for oldest, *others in groups.values():
        for other in others:
            first, second = server.get_run(str(oldest.run_id)), server.get_run(str(other.run_id))
            if first is None or second is None:
                continue
            names = suspects(oldest.files, other.files)
            if files := differing(names, partial(server.artifact, first), partial(server.artifact, second)):
                problems.append(str(conflict(f"{other.name} (run {other.run_id})", str(oldest.run_id), files)))
                continue
            ids = dict.fromkeys((*summary_of(first).origin_run_ids, str(other.run_id), *other.origin_run_ids))
            server.set_tags(first.info.run_id, {ORIGIN_TAG: " ".join(one for one in ids if one != oldest.run_id)})
            server.client().delete_run(second.info.run_id)
            _log.info(f"{other.name}: deleted run {other.run_id}, which repeats run {oldest.run_id}")
    return problems


def remove_models(server: Server, run: Run, keep: str | None) -> None:
    """Delete the logged models of a run that are not READY, except `keep`."""
    client = server.client()
    for model in client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"):
        if model.model_id != keep and str(model.status) != "READY":
            client.delete_logged_model(model.model_id)
