"""What a list or a tree shows of nodes: in which order, under what, in which words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from harness.lineage.nodes.graph import LineageGraph, RunSummary


def tree_lines(nodes: Sequence[RunSummary]) -> Iterator[tuple[str, RunSummary]]:
    """Yield (indentation drawn as lines, node) so that what is nested under a node follows it."""
    places = LineageGraph(nodes).nested()
    seen: set[str] = set()

    def below(key: str | None, indent: str) -> Iterator[tuple[str, RunSummary]]:
        under = places.get(key, [])
        for number, node in enumerate(under, start=1):
            if node.key in seen:  # a planted cycle must not hang the tree
                continue
            seen.add(node.key)
            branch, rest = ("", "") if key is None else ("└─ ", "   ") if number == len(under) else ("├─ ", "│  ")
            yield indent + branch, node
            yield from below(node.key, indent + rest)

    yield from below(None, "")


def short_id(node: RunSummary, digits: int = 8) -> str:
    """Return the beginning of the run ID, or of the key of a node that is not in MLflow yet."""
    return node.run_id[:digits] if node.run_id else f"{node.key[:digits]}*"


def _three_digits(density: str) -> str:
    """Return a density as it is shown; a tag that somebody edited is shown as it stands, and hides no other run."""
    try:
        return f"{float(density):.3f}"
    except ValueError:
        return density


def columns(node: RunSummary) -> dict[str, str]:
    """Return what a list shows of a node, by the name of the column; '–' where it has no such thing."""
    tags = node.tags
    error = node.metrics.get("test_error_percent")
    density = tags.get("density")
    return {
        "name": node.name,
        "method": " ".join(tags[tag] for tag in ("method", "kind_of_training") if tag in tags) or "–",
        "level": tags.get("level", "–"),
        "density": _three_digits(density) if density else "–",
        "test error": f"{error:.2f} %" if error is not None else "–",
        "seeds": f"{tags.get('init_seed', '–')}/{tags.get('sgd_seed', '–')}",
        "run": short_id(node),
        "date": datetime.fromtimestamp(node.started_ms / 1000).strftime("%Y-%m-%d %H:%M") if node.started_ms else "–",
    }
