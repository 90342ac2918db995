"""The order of a tree of nodes, and the columns of a list of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from harness.lineage.nodes.graph import LineageGraph, RunSummary

NUMBERS = ("level", "density", "test error", "barrier")
"""Columns that are set flush right."""
SPARE = ("seeds", "method", "density", "level", "date")
"""Columns that a narrow terminal does without; a run's name holds most of them."""


def tree_order(nodes: Sequence[RunSummary]) -> Iterator[tuple[int, RunSummary]]:
    """Yield (depth, node) so that the nodes nested under a node follow it."""
    nested = LineageGraph(nodes).nested()
    seen: set[str] = set()

    def below(key: str | None, depth: int) -> Iterator[tuple[int, RunSummary]]:
        for node in nested.get(key, []):
            if node.key not in seen:  # a planted cycle must not hang the tree
                seen.add(node.key)
                yield depth, node
                yield from below(node.key, depth + 1)

    yield from below(None, 0)


def short_id(node: RunSummary, digits: int = 8) -> str:
    """Return the beginning of a run ID, or of the key if MLflow lacks the run."""
    return node.run_id[:digits] if node.run_id else f"{node.key[:digits]}*"


def _three_digits(density: str) -> str:
    """Return a density to three digits; a tag that somebody edited stands as it is."""
    try:
        return f"{float(density):.3f}"
    except ValueError:
        return density


def columns(node: RunSummary) -> dict[str, str]:
    """Return the texts of a node by the name of their column; '–' where it has no such fact."""
    tags = node.tags
    error = node.metrics.get("test_error_percent")
    barrier = node.metrics.get("barrier")
    density = tags.get("density") or str(node.metrics.get("density", ""))
    return {
        "name": node.name,
        "method": " ".join(tags[tag] for tag in ("method", "kind_of_training") if tag in tags) or "–",
        "level": tags.get("level", "–"),
        "density": _three_digits(density) if density else "–",
        "test error": f"{error:.2f} %" if error is not None else "–",
        "barrier": f"{barrier:.2f}" if barrier is not None else "–",
        "seeds": f"{tags.get('init_seed', '–')}/{tags.get('sgd_seed', '–')}",
        "run": short_id(node),
        "date": datetime.fromtimestamp(node.started_ms / 1000).strftime("%Y-%m-%d %H:%M") if node.started_ms else "–",
    }
