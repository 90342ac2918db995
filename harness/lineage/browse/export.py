"""Export the lineage graph for other programs as JSON or GraphML."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.common.escape import for_terminal
from harness.lineage.nodes.graph import RunSummary

if TYPE_CHECKING:
    import networkx

FORMATS = ("json", "graphml")
_TEXT_TAGS = ("method", "model", "data", "kind_of_training", "question")
_NUMBER_TAGS = ("level", "init_seed", "sgd_seed")
_METRICS = ("density", "test_error_percent", "barrier")


def edges(nodes: Iterable[RunSummary]) -> list[dict[str, str]]:
    """Return all parent edges.

    Each is {"from": parent key, "to": child key, "relation": relation}.
    """
    return [
        {"from": parent.key, "to": node.key, "relation": parent.relation} for node in nodes for parent in node.parents
    ]


def to_networkx(nodes: Iterable[RunSummary]) -> networkx.DiGraph[str]:
    """Convert runs to a networkx graph.

    Keys are the nodes, and attributes have type str, int or float. Parents that are not among the runs become nodes of
    kind `missing`. If a child uses one parent in several ways, its edge has all these relations, joined by commas.
    """
    import networkx

    nodes = list(nodes)
    graph: networkx.DiGraph[str] = networkx.DiGraph()
    graph.add_nodes_from((node.key, _attributes(node)) for node in nodes)
    for edge in edges(nodes):
        if edge["from"] not in graph:
            graph.add_node(edge["from"], kind="missing", name=edge["from"][:16])
        known = graph.get_edge_data(edge["from"], edge["to"], {}).get("relation")
        relation = f"{known}, {edge['relation']}" if known else edge["relation"]
        graph.add_edge(edge["from"], edge["to"], relation=relation)
    return graph


def write_export(nodes: Iterable[RunSummary], path: Path, form: str) -> None:
    """Write the runs and their parent edges to a new file.

    Args:
        nodes: Runs to export.
        path: File to create.
        form: One of FORMATS.

    Raises:
        FileExistsError: `path` already exists.
        ValueError: The format is unknown.
    """
    nodes = list(nodes)
    if form not in FORMATS:
        raise ValueError(f"unknown format {form!r}; known: {', '.join(FORMATS)}")
    with open(path, "xb") as file:
        if form == "graphml":
            import networkx

            networkx.write_graphml(to_networkx(nodes), file, infer_numeric_types=False)
        else:
            answer = {"format": 1, "command": "export", "nodes": [node.to_dict() for node in nodes]}
            file.write(json.dumps(answer | {"edges": edges(nodes)}, indent=1).encode() + b"\n")


def _attributes(node: RunSummary) -> dict[str, Any]:
    """Return the node attributes of a run, without those that it lacks.

    Control characters are escaped, because XML forbids them.
    """
    tags = node.tags
    values: dict[str, Any] = {"kind": node.kind, "name": node.name, "status": node.status, "run_id": node.run_id}
    values |= {name: tags.get(name) for name in _TEXT_TAGS}
    values |= {name: int(tags[name]) for name in _NUMBER_TAGS if tags.get(name, "").isdecimal()}
    values |= {name: float(node.metrics[name]) for name in _METRICS if name in node.metrics}
    if node.started_ms:
        values["started"] = datetime.fromtimestamp(node.started_ms / 1000, UTC).isoformat(timespec="seconds")
    texts = {name: for_terminal(value) for name, value in values.items() if isinstance(value, str)}
    return {name: value for name, value in values.items() if value is not None} | texts
