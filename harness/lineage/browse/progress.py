"""Find searches that are not finished, from local runs."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from harness.common.files import read_json
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.nodes.index import LocalIndex
from harness.lineage.nodes.local_files import LocalNodes


def unfinished_searches(local: LocalNodes, nodes: Iterable[RunSummary]) -> dict[str, str]:
    """Return the progress of local searches that lack levels, such as "5 of 9", by key.

    The number of levels is that of the last interrupted launch. Without one, it is that of the first launch.

    Args:
        local: Local runs.
        nodes: Runs of any kind. Only searches count.
    """
    # Phase: find the searches, and their deepest levels.
    searches = {node.key for node in nodes if node.kind == "search"}
    if not searches:
        return {}
    index = LocalIndex(local)
    deepest: dict[str, int] = {}
    for entry in index.entries.values():
        if entry.kind == "level" and entry.nest_key in searches and (entry.level or "").isdigit():
            deepest[entry.nest_key] = max(int(entry.level or 0), deepest.get(entry.nest_key, 0))

    # Phase: read the planned numbers of levels. Altered records and drafts are skipped.
    planned: dict[str, int | None] = {}
    for key in searches & index.entries.keys():
        with suppress(ValueError, OSError):
            planned[key] = _num_levels(index.record(key).config)
    for path in local.directory.glob(".making-level-*/draft.json"):
        with suppress(ValueError, OSError, KeyError, TypeError, AttributeError):
            draft = read_json(path)
            tops = {index.top(parent) for parent in draft["parents"]} & searches
            planned |= dict.fromkeys(tops, _num_levels(draft["config"]))

    # Phase: compare both.
    return {
        key: f"{deepest.get(key, '–')} of {number}"
        for key, number in planned.items()
        if number is not None and deepest.get(key, -1) < number
    }


def _num_levels(config: dict[str, Any]) -> int | None:
    """Return the number of levels in recorded settings, or None if they have none."""
    search = config.get("search")
    number = search.get("num_levels") if isinstance(search, dict) else None
    return number if isinstance(number, int) else None
