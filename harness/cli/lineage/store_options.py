"""Define the options that choose a store.

Fall back to local runs if the tracking server is unreachable.
"""

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
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoreOptions:
    """Local runs and MLflow store to use."""

    runs: Path = DEFAULT_DIRECTORY
    """Directory of local runs."""
    tracking_uri: str | None = None
    """URI of the MLflow store. Default: MLFLOW_TRACKING_URI, or sqlite:///mlflow.db in the working directory."""
    offline: bool = False
    """Use local runs only."""
    json: bool = False
    """Print JSON instead of text. docs/lineage.md describes its fields."""
    verbosity: VerbosityOption = None

    def open(self, experiment: str = DEFAULT_EXPERIMENT) -> LineageStore:
        """Open the store. New runs are delivered to `experiment`."""
        return open_store(self.runs, self.tracking_uri, experiment, offline=self.offline)

    def ask(self, question: Callable[[LineageStore], Answer]) -> Answer:
        """Call `question` with the store and return its answer.

        If the server is unreachable, warn and use only the local runs. If the directory of a given --runs does not
        exist, warn and use only MLflow.

        Raises:
            ConnectionError: The server is reachable, but refuses access.
        """
        if self.runs != DEFAULT_DIRECTORY and not self.runs.is_dir():
            rest = "" if self.offline else "; showing MLflow only"
            _log.warning(f"{self.runs} does not exist{rest}")
        try:
            return question(self.open())
        except RefusedError:
            raise
        except ConnectionError as error:
            _log.warning(f"{error}; showing only local runs")
            return question(open_store(self.runs, offline=True))


Where = Annotated[StoreOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="store")]
"""Options of a store, for the field `place` of every command. Help lists them as "store options"."""
