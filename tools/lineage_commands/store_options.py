"""The options that choose a store, and the answer from local nodes when the tracking server is away."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from harness.cli.options import VerbosityOption
from harness.lineage.store import DEFAULT_DIRECTORY, DEFAULT_EXPERIMENT, LineageStore, open_store
from harness.lineage.tracking.server import RefusedError

Answer = TypeVar("Answer")
_log = logging.getLogger("harness.tools.lineage")


@dataclass(frozen=True)
class StoreOptions:
    """Where to look."""

    runs: Path = DEFAULT_DIRECTORY
    """Directory of the local nodes."""
    tracking_uri: str | None = None
    """URI of the MLflow store. Default: MLFLOW_TRACKING_URI, or sqlite:///mlflow.db in the working directory."""
    offline: bool = False
    """Look at local nodes alone."""
    json: bool = False
    """Print JSON instead of text; docs/lineage.md has its shape."""
    verbosity: VerbosityOption = None

    def open(self, experiment: str = DEFAULT_EXPERIMENT) -> LineageStore:
        """Open the store; `experiment` is the one that new runs are delivered to."""
        return open_store(self.runs, self.tracking_uri, experiment, offline=self.offline)

    def ask(self, question: Callable[[LineageStore], Answer]) -> Answer:
        """Return the answer, from the local nodes alone (and saying so) when the tracking store is away.

        A server that is there and lets nobody in is an error: ConnectionError.
        """
        try:
            return question(self.open())
        except RefusedError:
            raise
        except ConnectionError as error:
            _log.warning(f"{error}; showing local nodes alone")
            return question(open_store(self.runs, offline=True))


Where = Annotated[StoreOptions, tyro.conf.OmitArgPrefixes]
