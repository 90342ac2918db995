"""Write the lineage as one HTML file.

It has an interactive graph, and a table of all runs with links to MLflow. The file is self-contained and loads nothing.
Its content security policy permits only its own script and style, by their digests. Names and tags from untrusted
stores therefore cannot run code in it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import string
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from harness.common.escape import for_terminal, redact, redact_word
from harness.lineage.browse.listing import columns, explain_barriers, tree_order
from harness.lineage.nodes.graph import LineageGraph, RunSummary
from harness.lineage.page.drawing import DrawingError, draw_svg
from harness.lineage.page.picture import Picture, picture_of
from harness.lineage.tracking.description import run_address

LOCAL_UI = "http://127.0.0.1:5000"
MOST_IN_ONE_PICTURE = 600  # runs; Graphviz lays them out in about a second, and more would be unreadable
_TABLE = ("kind", "method", "level", "density", "test error", "barrier", "init/sgd seed", "parents", "date", "run")


def ui_root(address: str | None) -> str:
    """Return the URL of the MLflow UI, without credentials, ending in "/".

    Args:
        address: A tracking URI. If it is not an HTTP(S) URL, the default address of `mlflow ui` is returned.

    Raises:
        ValueError: The URL has no valid host.
    """
    if address is None or not address.startswith(("http://", "https://")):
        address = LOCAL_UI
    parts = urlsplit(address)
    if not parts.hostname or not re.fullmatch(r"[A-Za-z0-9.:\[\]_-]+", parts.netloc.rpartition("@")[2]):
        raise ValueError(f"{redact_word(address)!r} is not the address of an MLflow UI: give one such as {LOCAL_UI}")
    path = re.sub(r"[^A-Za-z0-9._~/%-]", "", parts.path).rstrip("/")
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], f"{path}/", "", ""))


def is_page(path: Path) -> bool:
    """Return whether this module wrote a file, so that it may be overwritten."""
    with open(path, "rb") as file:
        return file.read(400).startswith(_resource("page.html").partition("$")[0].encode())


def page(title: str, nodes: Sequence[RunSummary], ui: str) -> tuple[str, str | None]:
    """Build the HTML page of some runs.

    All runs are drawn in one picture. Above 600 runs, each search with the runs below it has its own picture.

    Args:
        title: Heading of the page.
        nodes: Runs to show, in any order.
        ui: URL of the MLflow UI, as `ui_root` returns it.

    Returns:
        (HTML, None), or (HTML without the graph, reason) if the graph could not be drawn.
    """
    # Phase: draw the graph
    nodes = [node for _, node in tree_order(sorted(nodes, key=lambda node: (node.started_ms, node.name)))]
    drawn: list[tuple[str, Picture]] = []
    figures, problem = [], None
    try:
        for number, (name, some) in enumerate(_parts(title, nodes)):
            picture = picture_of(some, prefix=f"p{number}")
            figures.append(_figure(name, draw_svg(picture)))
            drawn.append((name, picture))
    except DrawingError as error:
        drawn, figures, problem = [], [], str(error)
    # Phase: fill the template
    style, script = _resource("page.css"), _resource("page.js")
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    html = string.Template(_resource("page.html")).substitute(
        policy=policy,
        title=_shown(title),
        counts=_counts(nodes),
        style=style,
        script=script,
        figures="\n".join(figures) or f"<p>{_shown(problem or 'Nothing to draw.')}</p>",
        table=_table(nodes, ui),
        data=_json(_data(nodes, [picture for _, picture in drawn], ui)),
    )
    return html, problem


def _parts(title: str, nodes: Sequence[RunSummary]) -> list[tuple[str, list[RunSummary]]]:
    """Split the runs into (title, runs) for each picture.

    A small graph is one picture. Otherwise each root gets a picture with all runs below it and their parents.
    """
    if len(nodes) <= MOST_IN_ONE_PICTURE:
        return [(title, list(nodes))] if nodes else []
    graph = LineageGraph(nodes)
    places: dict[str, list[RunSummary]] = {}
    for node in nodes:
        places.setdefault(_top(graph, node.key), []).append(node)
    parts = []
    for key, family in places.items():
        used = (graph.nodes.get(parent.key) for node in family for parent in node.parents)
        known = {node.key: node for node in [*family, *(node for node in used if node is not None)]}
        parts.append((graph.nodes[key].name, list(known.values())))
    return parts


def _top(graph: LineageGraph[RunSummary], key: str) -> str:
    """Return the key of the topmost known run above a run."""
    passed = set()
    while (above := graph.nodes[key].nest_key) in graph.nodes and above not in passed:
        passed.add(key)
        key = str(above)
    return key


def _figure(title: str, svg: str) -> str:
    """Wrap an SVG document in a figure element, without its XML header."""
    return f"<figure><figcaption>{_shown(title)}</figcaption>{svg[svg.index('<svg') :]}</figure>"


def _table(nodes: Sequence[RunSummary], ui: str) -> str:
    names = {node.key: node.name for node in nodes}
    head = "".join(f"<th>{name}</th>" for name in ("name", *_TABLE))
    rows = []
    for node in nodes:
        cells = columns(node) | {"kind": node.kind, "parents": _came_from(node, names)}
        address = run_address(node)
        name = _shown(node.name)
        shown = f'<a href="{escape(ui + address)}" target="_blank" rel="noopener">{name}</a>' if address else name
        rest = "".join(f"<td>{_shown(cells[column])}</td>" for column in _TABLE)
        rows.append(f'<tr data-key="{escape(node.key)}"><td>{shown}</td>{rest}</tr>')
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return table + (f"<p>{escape(told)}</p>" if (told := explain_barriers(nodes)) else "")


def _came_from(node: RunSummary, names: dict[str, str]) -> str:
    """Return the relation and name of each parent as text."""
    came = (f"{parent.relation} {names.get(parent.key, parent.key[:12] + '…')}" for parent in node.parents)
    return "; ".join(came) or "–"


def _data(nodes: Iterable[RunSummary], pictures: Iterable[Picture], ui: str) -> dict[str, Any]:
    """Return the data for page.js: runs, boxes and arrows."""
    runs = {}
    for node in nodes:
        address = run_address(node)
        runs[node.key] = {
            "name": for_terminal(redact(node.name)),
            "kind": node.kind,
            "run": node.run_id,
            "link": ui + address if address else None,
            "tags": {name: for_terminal(redact(value)) for name, value in sorted(node.tags.items())},
            "metrics": {n: value if math.isfinite(value) else str(value) for n, value in sorted(node.metrics.items())},
            "files": dict(sorted(node.files.items())),
        }
    boxes, arrows = {}, {}
    for picture in pictures:
        for box in picture.boxes:
            boxes[box.name] = {"kind": box.kind, "lines": [for_terminal(line) for line in box.lines], "key": box.key}
        for number, arrow in enumerate(picture.arrows):
            arrows[f"{arrow.tail}-{number}"] = [arrow.tail, arrow.head, arrow.relation]
    return {"runs": runs, "boxes": boxes, "arrows": arrows}


def _counts(nodes: Sequence[RunSummary]) -> str:
    kinds = [node.kind for node in nodes]
    words = {"search": "searches", "analysis": "analyses"}
    counted = {kind: kinds.count(kind) for kind in ("search", "level", "training", "analysis", "report")}
    return ", ".join(f"{n} {kind if n == 1 else words.get(kind, kind + 's')}" for kind, n in counted.items() if n)


def _shown(text: str) -> str:
    """Escape text for HTML, with credentials and control characters removed."""
    return escape(for_terminal(redact(text)))


def _json(data: Any) -> str:
    """Return JSON that is safe inside a script element: "<", ">" and "&" are escaped."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _resource(name: str) -> str:
    return files("harness.lineage.page").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
