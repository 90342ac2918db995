"""Overview of a search on its root run's page in MLflow: the graph as a picture and as HTML, and a table of links.

An overview is drawn from the runs that MLflow has: the search's own, and their relatives in other searches. During a
launch it is drawn at most once a minute. It holds no results of its own, so a stale or missing one loses nothing.
`tickets lineage sync` redraws it.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping

from harness.common.escape import redact
from harness.common.program import command
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.tracking.description import PAGE, PICTURE, describe_search, is_own_note, note_tags, run_address
from harness.lineage.tracking.moved import send_text
from harness.lineage.tracking.server import FAMILIES_TAG, ROOT_TAG, Server, family_digits, id_conditions

_log = logging.getLogger(__name__)

DRAWN_TAG = "harness.overview"  # digest of the drawn graph, to skip an unchanged one

_SECONDS_BETWEEN = 60
_INCHES = 8.5  # a wider picture pushes the right column off MLflow's page
_MOST_DRAWN = 600  # runs; a larger picture is unreadable


class Overviews:
    """Stale overviews of searches, drawn when due or on request."""

    def __init__(self, server: Server, ask: Callable[[str], list[RunSummary]]) -> None:
        """Collect stale overviews.

        Args:
            server: The tracking server.
            ask: Returns the runs that match an MLflow filter.
        """
        self.server, self.ask = server, ask
        self.waiting: dict[str, None] = {}
        self._drawn_at: float | None = None
        self._told: set[str] = set()

    def touch(self, roots: Iterable[str]) -> None:
        """Mark the overviews of these root keys as stale."""
        self.waiting |= dict.fromkeys(roots)

    def draw_if_due(self) -> None:
        """Draw stale overviews, at most once a minute."""
        if self._drawn_at is None or time.monotonic() - self._drawn_at >= _SECONDS_BETWEEN:
            self.draw()

    def draw(self) -> None:
        """Draw all stale overviews. A failure is logged once and loses nothing but the picture."""
        while self.waiting:
            root = next(iter(self.waiting))
            del self.waiting[root]
            try:
                with self.server.talking("show the graph"):
                    self._draw(root)
            except (OSError, ValueError, LookupError) as error:
                self._say(f"{error}; the runs are delivered, and `{command('lineage sync')}` draws the graph")
        self._drawn_at = time.monotonic()

    def _say(self, problem: str) -> None:
        if problem not in self._told:
            self._told.add(problem)
            _log.warning(problem)

    def _draw(self, root: str) -> None:
        # Drawing is imported late, so that short commands stay fast.
        from harness.lineage.page.drawing import DrawingError, dot_source, draw_svg
        from harness.lineage.page.page import page, ui_root
        from harness.lineage.page.picture import picture_of

        # Phase: collect the runs, and skip an unchanged graph.
        run = self.server.run_with(root)
        if run is None or run.info.status != "FINISHED" or run.data.tags.get("harness.kind") != "search":
            return
        nodes = self._around(root)
        (top,) = (node for node in nodes if node.run_id == run.info.run_id)
        picture = picture_of(nodes[:_MOST_DRAWN])
        addresses = {node.key: f"./{address}" for node in nodes if (address := run_address(node))}
        source = _digest(dot_source(picture, addresses, _INCHES))
        if run.data.tags.get(DRAWN_TAG) == source:
            return

        # Phase: upload the picture and the page.
        client, problem = self.server.client(), None
        try:
            send_text(self.server, run, draw_svg(picture, addresses, _INCHES), PICTURE)
            html, _ = page(top.name, nodes, ui_root(self.server.tracking_uri))
            send_text(self.server, run, html, PAGE)
        except DrawingError as error:
            problem = error

        # Phase: update the description, also where the graph could not be drawn.
        has_picture = problem is None or DRAWN_TAG in run.data.tags
        self._describe(run.info.run_id, run.data.tags, describe_search(top, nodes, has_picture=has_picture))
        if problem is not None:
            raise problem
        client.set_tag(run.info.run_id, DRAWN_TAG, source)

    def _describe(self, run_id: str, tags: Mapping[str, str], note: str) -> None:
        """Replace the description, unless a person edited it."""
        if is_own_note(tags):
            self.server.set_tags(run_id, note_tags(redact(note)))

    def _around(self, root: str) -> list[RunSummary]:
        """Return the runs of a search, their children in other searches, and the parents of all, oldest first."""
        found = {node.key: node for node in self._finished(f"tags.`{ROOT_TAG}` = '{root}'")}
        near = self._finished(f"tags.`{FAMILIES_TAG}` LIKE '%{family_digits(root)}%'")
        found |= {node.key: node for node in near if any(parent.key in found for parent in node.parents)}
        wanted = {parent.key for node in found.values() for parent in node.parents} - found.keys()
        run_ids = [run_id for node in found.values() for run_id in node.parent_run_ids] if wanted else []
        for condition in id_conditions(run_ids):
            found |= {node.key: node for node in self._finished(condition) if node.key in wanted}
        return sorted(found.values(), key=lambda node: (node.started_ms, node.name))

    def _finished(self, condition: str) -> list[RunSummary]:
        return [node for node in self.ask(condition) if node.status == "FINISHED"]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
