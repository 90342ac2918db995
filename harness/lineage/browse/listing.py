"""Columns of the list of runs, and the order of the tree of runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from harness.lineage.nodes.graph import LineageGraph, RunSummary
from harness.lineage.nodes.record import shown_barrier

NUMBERS = ("level", "density", "test error", "barrier")
"""Columns that are aligned right."""
SPARE = ("init/sgd seed", "method", "density", "level", "date")
"""Columns that a narrow terminal drops, in this order. The name of a run has most of their contents."""


def tree_order(nodes: Sequence[RunSummary]) -> Iterator[tuple[int, RunSummary]]:
    """Yield (depth, run), each run before the runs nested under it."""
    nested = LineageGraph(nodes).nested()
    seen: set[str] = set()

    def below(key: str | None, depth: int) -> Iterator[tuple[int, RunSummary]]:
        for node in nested.get(key, []):
            if node.key not in seen:  # a forged cycle must not loop
                seen.add(node.key)
                yield depth, node
                yield from below(node.key, depth + 1)

    yield from below(None, 0)


def short_id(node: RunSummary, digits: int = 8) -> str:
    """Return the first digits of a run ID. Without a run ID, return those of the key with "*".

    "≠" marks a local run whose key has other contents in MLflow.
    """
    if node.run_id:
        return node.run_id[:digits]
    return f"{node.key[:digits]}{'*' if node.other_run_id is None else '≠'}"


def _three_digits(density: str) -> str:
    """Return a density with three digits. An unreadable tag is returned as it is."""
    try:
        return f"{float(density):.3f}"
    except ValueError:
        return density


def _date(started_ms: int) -> str:
    """Return a time in ms since 1970 as local date and time; "–" if it is unknown or beyond the calendar."""
    try:
        return datetime.fromtimestamp(started_ms / 1000).strftime("%Y-%m-%d %H:%M") if started_ms else "–"
    except (ValueError, OverflowError, OSError):
        return "–"


def explain_barriers(nodes: Iterable[RunSummary]) -> str:
    """Return the line below a table that explains the column "barrier"; empty if no run has one."""
    found = [one for node in nodes if (one := shown_barrier(node.tags, node.metrics)) is not None]
    copies = any(is_difference for _, is_difference in found)
    return "barrier: points above the straight line" + "; Δ: difference of the two errors" * copies if found else ""


def columns(node: RunSummary) -> dict[str, str]:
    """Return the cells of a run by column; "–" marks a missing value."""
    tags = node.tags
    error = node.metrics.get("test_error_percent")
    barrier = shown_barrier(tags, node.metrics)
    density = tags.get("density") or str(node.metrics.get("density", ""))
    return {
        "name": node.name,
        "method": " ".join(tags[tag] for tag in ("method", "kind_of_training") if tag in tags) or "–",
        "data": tags.get("data", "–"),
        "level": tags.get("level", "–"),
        "density": _three_digits(density) if density else "–",
        "test error": f"{error:.2f} %" if error is not None else "–",
        "barrier": f"{'Δ ' * barrier[1]}{barrier[0]:.2f}" if barrier is not None else "–",
        "init/sgd seed": f"{tags.get('init_seed', '–')}/{tags.get('sgd_seed', '–')}",
        "run": short_id(node),
        "date": _date(node.started_ms),
    }
