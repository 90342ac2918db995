"""Links that open the MLflow UI on our runs, in a saved view (`harness.lineage.tracking.view`)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.common.program import command
from harness.lineage.browse.find import family, newest
from harness.lineage.browse.query import Query
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.store import LineageStore
from harness.lineage.tracking.description import WORKFLOW
from harness.lineage.tracking.server import ROOT_TAG
from harness.lineage.tracking.view import VIEW, VIEW_TAG, saved_view

_MOST_AT_ONCE = 100  # runs; the UI loads no more in one request


@dataclass(frozen=True)
class View:
    """A saved view: its address relative to the root of the UI, and its content in words."""

    address: str
    what: str


def open_runs(store: LineageStore, experiment: str, node: RunSummary | None = None) -> View:
    """Save a view of the runs in MLflow and return its link.

    Args:
        store: Local runs and the tracking server.
        experiment: Name of the experiment. One with more than 100 runs opens on its newest search.
        node: Show only the search that this run belongs to.

    Raises:
        LookupError: The experiment does not exist or is empty, or the search is not delivered.
        ConnectionError: The server is unreachable or rejects the view.
    """
    # Phase: choose the runs, a whole experiment or one search.
    delivered = [] if node else _delivered(store, experiment)
    if len(delivered) > _MOST_AT_ONCE:
        node = next((one for one in delivered if one.root != one.key or one.kind == "search"), delivered[0])
    if node is None:
        experiment_id, key, what = delivered[0].experiment_id, VIEW, f"all runs of {experiment}"
        value = saved_view()
    else:
        top = next((one for one in family(store, node) if one.key == node.root), node)
        if top.run_id is None:
            raise LookupError(f"{top.name} is not in MLflow yet: `{command('lineage sync')}` delivers it")
        experiment_id, key, what = top.experiment_id, f"{VIEW}-{top.key[:12]}", f"the runs of {top.name}"
        value = saved_view(top.name, f"tags.`{ROOT_TAG}` = '{top.key}'")

    # Phase: save the view as an experiment tag.
    if experiment_id is None or not re.fullmatch("[0-9a-zA-Z]+", experiment_id):
        raise LookupError(f"{experiment_id!r} is not the ID of an experiment")
    with store.server.talking("save the view of the runs"):
        store.server.client().set_experiment_tag(experiment_id, VIEW_TAG + key, value)
    return View(f"#/experiments/{experiment_id}/runs?{WORKFLOW}&viewStateShareKey={key}", what)


def _delivered(store: LineageStore, experiment: str) -> list[RunSummary]:
    nodes = newest(store, _MOST_AT_ONCE + 1, Query(experiment=experiment))
    delivered = [one for one in nodes if one.run_id is not None]
    if not delivered:
        raise LookupError(f"no run of experiment {experiment!r} is in MLflow yet")
    return delivered
