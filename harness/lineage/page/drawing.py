"""Draw a picture of the lineage as SVG with Graphviz.

Box colours show the test accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from harness.common.escape import for_terminal
from harness.common.optional import missing
from harness.lineage.page.picture import Box, Picture

_NUM_COLOURS = 7
_COLOURS = f"ylgnbu{_NUM_COLOURS}"  # ColorBrewer scheme, safe for colour-blind readers and in print
_LIGHT_TEXT_FROM = 5  # darker colours, from this number on, get white text
_SHAPES = {
    "data": {"shape": "cylinder", "fillcolor": "#eeeeee"},
    "theta_init": {"shape": "ellipse", "fillcolor": "#eeeeee"},
    "level": {"shape": "box"},
    "mask": {"shape": "note", "fillcolor": "white", "fontsize": "9"},
    "training": {"shape": "box", "style": "filled,rounded"},
    "analysis": {"shape": "hexagon", "fillcolor": "white"},
    "report": {"shape": "tab", "fillcolor": "white"},
    "missing": {"shape": "box", "fillcolor": "white", "style": "filled,dashed", "fontcolor": "#777777"},
}
_LINES = {
    "pruned-from": {"color": "#222222", "penwidth": "1.6", "weight": "20"},
    "masked-by": {"color": "#8a4fbe"},
    "trained-from": {"color": "#222222"},
    "compared": {"color": "#c25a00"},
    "reported": {"color": "#c25a00", "style": "dashed"},
    "initialised-from": {"color": "#888888", "style": "dashed"},
    "rewound-to": {"color": "#3a7d44", "constraint": "false"},
    "norm-rewound-to": {"color": "#3a7d44", "constraint": "false"},
    "trained-on": {"color": "#888888", "style": "dotted"},
    "made": {"color": "#8a4fbe", "arrowhead": "none", "label": ""},
}


class DrawingError(OSError):
    """Graphviz is missing or failed; the message gives the remedy."""


def draw_svg(picture: Picture, addresses: Mapping[str, str] | None = None, most_inches: float | None = None) -> str:
    """Draw a picture with Graphviz.

    Args:
        picture: Boxes, arrows and frames.
        addresses: {run key: URL} to which the box of that run links.
        most_inches: Largest width, at 96 pixels per inch. A wider picture is scaled down.

    Returns:
        An SVG document.

    Raises:
        DrawingError: `dot` or the Python package graphviz is missing, or `dot` fails.
    """
    # `dot` is a separate program, and the Python package only calls it. Either may be missing.
    try:
        import graphviz
    except ImportError:
        raise DrawingError(f"the graph was not drawn: {missing('graphviz', 'it')}") from None
    try:
        source = graphviz.Source(dot_source(picture, addresses, most_inches))
        return str(source.pipe(format="svg", encoding="utf-8", quiet=True))
    except graphviz.ExecutableNotFound:
        raise DrawingError(
            "the graph was not drawn: the program `dot` is missing; install Graphviz (Debian and Ubuntu: "
            "`apt-get install graphviz`)"
        ) from None
    except graphviz.CalledProcessError as error:
        reason = (error.stderr or "no reason given").strip().splitlines()[0]
        raise DrawingError(f"the graph was not drawn: dot failed: {for_terminal(str(reason)):.200}") from None


def dot_source(picture: Picture, addresses: Mapping[str, str] | None = None, most_inches: float | None = None) -> str:
    """Return the picture in the DOT language.

    All names are escaped, since they may come from untrusted stores. The arguments are those of `draw_svg`.
    """
    # Phase: page style
    import graphviz

    font = {"fontname": "Arial", "fontsize": "10"}
    graph = graphviz.Digraph(
        graph_attr={"ranksep": "0.35", "nodesep": "0.25", "newrank": "true", **font},
        node_attr={"style": "filled", "fillcolor": "#eeeeee", "margin": "0.1,0.05", "height": "0.3", **font},
        edge_attr={"arrowsize": "0.7", **font, "fontsize": "8", "fontcolor": "#555555"},
    )
    if most_inches is not None:
        graph.attr(size=f"{most_inches},1000")
    # Phase: boxes outside and inside of frames
    addresses = addresses or {}
    scale = _Scale.of(picture)
    places = {name: frame for frame in picture.frames for name in frame.boxes}
    for box in picture.boxes:
        if box.name not in places:
            graph.node(box.name, **_look(box, scale, addresses))
    boxes = {box.name: box for box in picture.boxes}
    for number, frame in enumerate(picture.frames):
        with graph.subgraph(name=f"cluster_{number}") as inside:
            title = _text(frame.title)
            inside.attr(label=title, tooltip=title, style="rounded", color="#999999", labeljust="l", margin="10")
            inside.attr(**_link(frame.key, addresses))
            for name in frame.boxes:
                inside.node(name, **_look(boxes[name], scale, addresses))
    # Phase: arrows and legend
    for number, arrow in enumerate(picture.arrows):
        look = {"label": f" {arrow.relation} ", **_LINES.get(arrow.relation, {})}
        tip = _text(f"{boxes[arrow.head].lines[0]} {arrow.relation} {boxes[arrow.tail].lines[0]}")
        name = f"{arrow.tail}-{number}"
        graph.edge(arrow.tail, arrow.head, **look, id=name, tooltip=tip, labeltooltip=tip)
        if arrow.relation == "made":
            graph.body.append(f"\t{{rank=same; {arrow.tail}; {arrow.head}}}\n")
    if scale is not None:
        graph.node("legend", scale.legend(), shape="plain", style="", tooltip="test accuracy")
    return str(graph.source)


def _look(box: Box, scale: _Scale | None, addresses: Mapping[str, str]) -> dict[str, str]:
    """Return the Graphviz attributes of a box."""
    text = _text("\n".join(line for line in box.lines if line))
    look = {"label": text, "tooltip": text, "id": box.name, "class": box.kind, **_SHAPES.get(box.kind, {})}
    if box.error_percent is not None and scale is not None:
        number = scale.colour(box.error_percent)
        look["fillcolor"] = f"/{_COLOURS}/{number}"
        look["fontcolor"] = "white" if number >= _LIGHT_TEXT_FROM else "black"
    return look | (_link(box.key, addresses) if box.key is not None else {})


def _link(key: str, addresses: Mapping[str, str]) -> dict[str, str]:
    """Return the Graphviz attributes that link a box to its run."""
    return {"URL": _text(addresses[key]), "target": "_top"} if key in addresses else {}


def _text(text: str) -> str:
    """Escape `text` for a DOT attribute.

    Backslashes, entities and markup then appear literally. Control characters, which XML forbids, are written as
    escapes.
    """
    import graphviz

    lines = (for_terminal(line).replace("&", "&amp;") for line in text.split("\n"))
    shown: str = graphviz.nohtml(r"\n".join(line.replace("\\", r"\\") for line in lines))
    return shown


class _Scale:
    """Map test errors to colours; the best error is the darkest.

    The steps between the smallest and the largest error are equal.
    """

    def __init__(self, least: float, greatest: float) -> None:
        self.least, self.greatest = least, greatest

    @classmethod
    def of(cls, picture: Picture) -> _Scale | None:
        """Return the scale of all errors in a picture, or None without errors."""
        errors = [box.error_percent for box in picture.boxes if box.error_percent is not None]
        errors = [error for error in errors if math.isfinite(error)]
        return cls(min(errors), max(errors)) if errors else None

    def colour(self, error: float) -> int:
        """Return the colour number of an error, from 1 (worst) to 7 (best).

        NaN and infinity count as worst.
        """
        span = self.greatest - self.least
        if not math.isfinite(error):
            return 1
        share = (self.greatest - error) / span if span > 0 else 1.0
        return 1 + min(int(share * _NUM_COLOURS), _NUM_COLOURS - 1)

    def legend(self) -> str:
        """Return the legend as a table in Graphviz's HTML-like syntax.

        It contains only numbers and therefore needs no escaping.
        """
        step = (self.greatest - self.least) / _NUM_COLOURS
        cells = []
        for number in range(1, _NUM_COLOURS + 1) if step > 0 else [_NUM_COLOURS]:
            error = self.greatest - step * (number - 0.5)
            colour = "white" if number >= _LIGHT_TEXT_FROM else "black"
            value = f'<FONT COLOR="{colour}">{100 - error:.1f}</FONT>'
            cells.append(f'<TD BGCOLOR="/{_COLOURS}/{number}">{value}</TD>')
        head = "<TD>test accuracy, %</TD>"
        table = '<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="4">'
        return f"<{table}<TR>{head}{''.join(cells)}</TR></TABLE>>"
