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
from harness.lineage.tracking.server import KEY_TAG, ORIGIN_TAG, MissingFileError, Server, summary_of

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
            # A person can change the status of a complete run, whose ID was given out.
            if not suspects(summary_of(finished).files, summary_of(run).files):
                _keep_ids(server, finished, summary_of(run))
            client.delete_run(run.info.run_id)
            remove_models(server, run, keep=None)
            removed += 1
    return removed


def merge_equal_runs(server: Server, runs: Iterable[RunSummary]) -> list[str]:
    """Keep the oldest of several finished runs with one key and equal contents. The IDs of the others find it.

    A run that lacks files, for example the copy of a run's tags, is never kept in place of a complete one.

    Returns:
        One line for each key whose runs have different contents. These runs stay.
    """
    # Phase: group the runs by key, the oldest first.
    groups: dict[str, list[RunSummary]] = {}
    for node in sorted(runs, key=lambda node: (node.started_ms, str(node.run_id))):
        groups.setdefault(node.key, []).append(node)

    # Phase: compare each run with the oldest one.
    problems = []
    for group in groups.values():
        oldest, *others = _complete_first(server, group) if len(group) > 1 else group
        for other in others:
            first, second = server.get_run(str(oldest.run_id)), server.get_run(str(other.run_id))
            if first is None or second is None:
                continue
            names = suspects(oldest.files, other.files)
            if files := differing(names, partial(server.artifact, first), partial(server.artifact, second)):
                problems.append(str(conflict(f"{other.name} (run {other.run_id})", str(oldest.run_id), files)))
                continue
            _keep_ids(server, first, other)
            server.client().delete_run(second.info.run_id)
            _log.info(f"{other.name}: deleted run {other.run_id}, which repeats run {oldest.run_id}")
    return problems


def _complete_first(server: Server, group: list[RunSummary]) -> list[RunSummary]:
    """Return runs in their order, but those that lack files last."""

    def lacks_files(node: RunSummary) -> bool:
        run = server.get_run(str(node.run_id))
        try:
            return run is None or bool(server.missing_files(run))
        except MissingFileError:  # the logged model was deleted
            return True

    return sorted(group, key=lacks_files)


def _keep_ids(server: Server, run: Run, other: RunSummary) -> None:
    """Let the IDs of another run with the same contents find a run."""
    ids = dict.fromkeys((*summary_of(run).origin_run_ids, str(other.run_id), *other.origin_run_ids))
    server.set_tags(run.info.run_id, {ORIGIN_TAG: " ".join(one for one in ids if one != run.info.run_id)})


def remove_models(server: Server, run: Run, keep: str | None) -> None:
    """Delete the logged models of a run that are not READY, except `keep`."""
    client = server.client()
    for model in client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"):
        if model.model_id != keep and str(model.status) != "READY":
            client.delete_logged_model(model.model_id)
