"""Choose the boxes and arrows of a picture, as plain data.

Boxes stand for data, initial parameters (θ_init), levels, signed masks, trainings and analyses. Arrows between runs
follow their parent references. Boxes for data, θ_init and masks come from a run's tags and files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from harness.common.escape import redact
from harness.config import drawn_before
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.nodes.record import SIGNED_MASK, shown_barrier


@dataclass(frozen=True)
class Box:
    """One box.

    `name` is unique in the picture, and `lines` is the text inside. `key` is the key of the run that made the object,
    or None for data and missing runs. `error_percent` is the test error in percent, which sets the colour.
    """

    name: str
    kind: str
    lines: tuple[str, ...]
    key: str | None = None
    error_percent: float | None = None


@dataclass(frozen=True)
class Arrow:
    """Arrow from the box `tail` to the box `head` made from it."""

    tail: str
    head: str
    relation: str


@dataclass(frozen=True)
class Frame:
    """Frame around the levels and masks of one search.

    `boxes` has their names, and `key` is the search's key.
    """

    title: str
    key: str
    boxes: tuple[str, ...]


@dataclass
class Picture:
    """Boxes in order of time, arrows, and a frame for each search."""

    boxes: list[Box] = field(default_factory=list)
    arrows: list[Arrow] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)


def picture_of(nodes: Iterable[RunSummary], prefix: str = "") -> Picture:
    """Return the picture of some runs.

    Args:
        nodes: Runs to draw. Parents that are not among them become boxes of kind `missing`.
        prefix: Prefix of all box names, so that names stay unique if a page has several pictures.
    """
    return _Drawer(sorted(nodes, key=lambda node: (node.started_ms, node.name, node.key)), prefix).draw()


class _Drawer:
    def __init__(self, nodes: Sequence[RunSummary], prefix: str) -> None:
        self.nodes = {node.key: node for node in nodes}
        self.prefix = prefix
        self.picture = Picture()
        self.named: dict[tuple[str, ...], str] = {}  # identity of the drawn object → name of its box

    def draw(self) -> Picture:
        for node in self.nodes.values():
            if node.kind != "search":
                self._box(("run", node.key), node.kind, _lines(node), node.key, node.metrics.get("test_error_percent"))
                if node.kind == "level" and SIGNED_MASK in node.files:
                    self._mask(node)
            elif not any(node.key == parent.key for other in self.nodes.values() for parent in other.parents):
                self._theta_init(node, node.key)  # an unfinished search without any level yet
        for node in self.nodes.values():
            if node.kind != "search":
                self._arrows(node)
        for node in self.nodes.values():
            if node.kind == "search":
                self._frame(node)
        return self.picture

    def _box(
        self,
        stands_for: tuple[str, ...],
        kind: str,
        lines: tuple[str, ...],
        key: str | None = None,
        error_percent: float | None = None,
    ) -> str:
        """Return the name of an object's box; add it on first use."""
        if stands_for not in self.named:
            self.named[stands_for] = name = f"{self.prefix}n{len(self.named)}"
            self.picture.boxes.append(Box(name, kind, tuple(redact(line) for line in lines), key, error_percent))
        return self.named[stands_for]

    def _arrow(self, tail: str, head: str, relation: str) -> None:
        arrow = Arrow(tail, head, relation)
        if arrow not in self.picture.arrows:
            self.picture.arrows.append(arrow)

    def _arrows(self, node: RunSummary) -> None:
        """Add all arrows that lead to the box of a run."""
        own = self.named["run", node.key]
        for parent in node.parents:
            self._arrow(self._source(parent.key, parent.relation), own, parent.relation)
        arrow, file = _rewinding(node.tags.get("method", "")) if node.kind == "level" else ("", "")
        if arrow and self._is_pruned(node):
            self._arrow(self._rewind_point(node, file), own, arrow)
        if node.kind == "training" and "init_seed" in node.tags:
            self._arrow(self._theta_init(node), own, "initialised-from")
        if node.kind in ("level", "training") and "data_digest" in node.tags and not self._has_data_of_a_parent(node):
            digest = node.tags["data_digest"]
            data = self._box(("data", digest), "data", (node.tags.get("data", "data"), f"{digest[:12]}…"))
            self._arrow(data, own, "trained-on")

    def _source(self, key: str, relation: str) -> str:
        """Return the box at which the arrow from a parent starts.

        For a search this is its θ_init, and for a level used as a mask its signed mask. Otherwise it is the parent's
        own box.
        """
        parent = self.nodes.get(key)
        if parent is None:
            return self._box(("run", key), "missing", ("not found", f"{key[:12]}…"))
        if parent.kind == "search":
            return self._theta_init(parent, key)
        if relation == "masked-by" and parent.kind == "level" and SIGNED_MASK in parent.files:
            return self._mask(parent)
        return self.named["run", key]

    def _theta_init(self, node: RunSummary, key: str | None = None) -> str:
        """Return the box of a run's θ_init.

        Runs with the same network, data set, seed and draw share one box.
        """
        tags = node.tags
        network = tags.get("network", tags.get("model", "?"))
        drawn = drawn_before(tags.get("model", ""), tags)
        stands_for = ("theta_init", network, tags.get("data", "?"), tags.get("init_seed", node.key), drawn or "")
        lines = ("θ_init", f"{network}, seed {tags.get('init_seed', '?')}", *(["drawn the other way"] if drawn else []))
        return self._box(stands_for, "theta_init", lines, key)

    def _is_pruned(self, level: RunSummary) -> bool:
        return any(parent.relation == "pruned-from" for parent in level.parents)

    def _rewind_point(self, level: RunSummary, file: str) -> str:
        """Return the box of the parameters to which a level was rewound.

        It is θ_k if a level of the same search has the given file, and otherwise θ_init.
        """
        for node in self.nodes.values():
            if node.nest_key == level.nest_key and file in node.files:
                known = ("rewind point", node.key) in self.named
                lines = ("θ_k", f"of L{node.tags.get('level', '?')}")
                point = self._box(("rewind point", node.key), "theta_init", lines, node.key)
                if not known:
                    self._arrow(self.named["run", node.key], point, "made")
                return point
        return self._theta_init(level)

    def _mask(self, level: RunSummary) -> str:
        """Return the box of a level's signed mask.

        The box and its arrow are added on first use.
        """
        known = ("mask", level.key) in self.named
        mask = self._box(("mask", level.key), "mask", ("signed mask", f"of L{level.tags.get('level', '?')}"), level.key)
        if not known:
            self._arrow(self.named["run", level.key], mask, "made")
        return mask

    def _has_data_of_a_parent(self, node: RunSummary) -> bool:
        """Return whether a parent was trained on the same data.

        Another arrow from the data is then redundant.
        """
        parents = [self.nodes[parent.key] for parent in node.parents if parent.key in self.nodes]
        trained = [parent for parent in parents if parent.kind in ("level", "training")]
        return any(parent.tags.get("data_digest") == node.tags["data_digest"] for parent in trained)

    def _frame(self, search: RunSummary) -> None:
        """Add a frame around the levels and masks of a search."""
        levels = [node for node in self.nodes.values() if node.kind == "level" and node.nest_key == search.key]
        inside = [self.named["run", level.key] for level in levels]
        inside += [self.named["mask", level.key] for level in levels if ("mask", level.key) in self.named]
        if inside:
            self.picture.frames.append(Frame(redact(search.name), search.key, tuple(inside)))


def _rewinding(method: str) -> tuple[str, str]:
    """Return (relation, file of the rewind point) of a pruning method.

    Both are "" if the method does not rewind.
    """
    from harness.pruning import METHODS  # imported late, because listing runs must not load torch

    return (METHODS[method].drawn_arrow, METHODS[method].drawn_file) if method in METHODS else ("", "")


def _lines(node: RunSummary) -> tuple[str, ...]:
    """Return the text in the box of a run."""
    tags, metrics = node.tags, node.metrics
    error = f"{metrics['test_error_percent']:.2f} % error" if "test_error_percent" in metrics else "no error measured"
    if node.kind == "level":
        density = f", density {metrics['density']:.3f}" if "density" in metrics else ""
        return f"L{tags.get('level', '?')}{density}", error
    if node.kind == "training":
        seeds = [f"{word} {tags[tag]}" for word, tag in (("init", "init_seed"), ("sgd", "sgd_seed")) if tag in tags]
        return tags.get("kind_of_training", "training"), ", ".join(seeds), error
    if node.kind == "analysis":
        barrier = shown_barrier(tags, metrics)
        if barrier is None:
            return tags.get("question", "comparison"), "no barrier"
        return tags.get("question", "comparison"), f"{'difference' if barrier[1] else 'barrier'} {barrier[0]:.2f}"
    return (node.name,)
