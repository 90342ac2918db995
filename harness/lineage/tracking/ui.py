"""How the MLflow UI opens on our runs: as a tree, the oldest first, with the columns that matter.

The columns are a saved view, an experiment tag in the form that MLflow 3.17's own "Views" menu writes. It is no part of
MLflow's documented interface: another version may open with its own columns.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from typing import Any

from harness.lineage.browse.find import family, newest
from harness.lineage.browse.query import Query
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.store import LineageStore
from harness.lineage.tracking.server import ROOT_TAG

VIEW_TAG = "mlflow.sharedViewState."
_VIEW = "lineage"
_MOST_AT_ONCE = 100  # runs; the UI loads no more before it is asked to
_WIDTHS = {  # in pixels, by MLflow's names of the columns
    "attributes.`Run Name`": 345,
    "runDateAndNestInfo": 125,
    "tags.`method`": 70,
    "tags.`kind_of_training`": 120,
    "tags.`level`": 60,
    "metrics.`density`": 100,
    "metrics.`test_error_percent`": 135,
    "metrics.`barrier`": 90,
    "tags.`init_seed`": 75,
    "tags.`sgd_seed`": 75,
}
_ALWAYS_SHOWN = ("attributes.`Run Name`", "runDateAndNestInfo")


@dataclass(frozen=True)
class View:
    """What to open: the address below the UI's root, and what it shows."""

    address: str
    what: str


def open_runs(store: LineageStore, experiment: str, node: RunSummary | None = None) -> View:
    """Save the view of an experiment's runs, or of the search that `node` belongs to, and return where it opens.

    An experiment of more than 100 runs opens on its newest search. Raises LookupError when the experiment is not there
    or empty, ConnectionError when the store cannot be reached or does not take the view.
    """
    delivered = [] if node else _delivered(store, experiment)
    if len(delivered) > _MOST_AT_ONCE:
        node = next((one for one in delivered if one.root != one.key or one.kind == "search"), delivered[0])
    if node is None:
        experiment_id, key, where, what = delivered[0].experiment_id, _VIEW, "", f"all runs of {experiment}"
    else:
        top = next((one for one in family(store, node) if one.key == node.root), node)
        if top.run_id is None:
            raise LookupError(f"{top.name} is not in MLflow yet: `python tools/lineage.py sync` delivers it")
        experiment_id, what = top.experiment_id, f"the runs of {top.name}"
        key, where = f"{_VIEW}-{top.key[:12]}", f"tags.`{ROOT_TAG}` = '{top.key}'"
    if experiment_id is None or not re.fullmatch("[0-9a-zA-Z]+", experiment_id):
        raise LookupError(f"{experiment_id!r} is no ID of an experiment")
    name = "Lineage" if not where else f"Lineage: {what.removeprefix('the runs of ')}"
    with store.server.talking("save the view of the runs"):
        store.server.client().set_experiment_tag(experiment_id, VIEW_TAG + key, _envelope(name, where))
    return View(f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={key}", what)


def _delivered(store: LineageStore, experiment: str) -> list[RunSummary]:
    nodes = newest(store, _MOST_AT_ONCE + 1, Query(experiment=experiment))
    delivered = [one for one in nodes if one.run_id is not None]
    if not delivered:
        raise LookupError(f"no run of experiment {experiment!r} is in MLflow yet")
    return delivered


def _envelope(name: str, where: str) -> str:
    now = int(time.time() * 1000)
    return json.dumps({"name": name, "createdAt": now, "updatedAt": now, "state": json.dumps(_state(where))})


def _state(where: str) -> dict[str, Any]:
    """Return the state of MLflow's table of runs; only in the order of their start does it nest them."""
    return {
        "searchFilter": where,
        "orderByKey": "attributes.start_time",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [name for name in _WIDTHS if name not in _ALWAYS_SHOWN],
        "columnOrder": list(_WIDTHS),
        "columnWidths": _WIDTHS,
        "runsHiddenMode": "FIRST_10_RUNS",
        "hideEmptyCharts": True,
        "useGroupedValuesInCharts": True,
    }
