"""The saved view "Lineage" of MLflow's table of runs: a tree, oldest run first, the most useful columns first.

A view is an experiment tag, in the format that the menu "Views" of MLflow 3.17 writes. MLflow does not document the
format. A later version may ignore the tag and show its default columns.
"""

from __future__ import annotations

import json
import time
from typing import Any

VIEW_TAG = "mlflow.sharedViewState."
VIEW = "lineage"  # suffix of the tag for the view of a whole experiment
EXPERIMENT_NOTE = (
    "Searches for winning signs. Choose *Model training* at the top left, then *Runs* and the view *Lineage*. "
    "`tickets lineage ui` prints a link to that view."
)
"""Description of a new experiment. MLflow's home page shows it."""

_NAME, _CREATED = "attributes.`Run Name`", "runDateAndNestInfo"
_ALWAYS_SHOWN = (_NAME, _CREATED)
_WIDTHS = {  # in pixels, by MLflow's column IDs, in the order shown
    _NAME: 345,
    "metrics.`test_error_percent`": 150,
    "metrics.`density`": 100,
    "tags.`level`": 60,
    "metrics.`barrier`": 90,
    "tags.`method`": 70,
    "tags.`kind_of_training`": 120,
    "tags.`init_seed`": 75,
    "tags.`sgd_seed`": 75,
    _CREATED: 125,
}


def saved_view(search: str = "", where: str = "") -> str:
    """Return the value of a view's tag.

    Args:
        search: Name of the search that the view is limited to. "" for a whole experiment.
        where: MLflow filter that selects the runs. "" selects all.
    """
    now = int(time.time() * 1000)
    name = f"Lineage: {search}" if search else "Lineage"
    return json.dumps({"name": name, "createdAt": now, "updatedAt": now, "state": json.dumps(_state(where))})


def _state(where: str) -> dict[str, Any]:
    """Return the state of the table; MLflow nests runs only when they are sorted by start time."""
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
