"""A process as one of several jobs on a node (see `harness.reproduction.jobs`). This module imports no torch."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.common.files import write_atomically
from harness.common.logging import watching_epochs

VARIABLE = "HARNESS_JOB"
"""Environment variable of a job: the path of its files, without their endings."""
CLAIMS = "claims"
"""Directory with one empty file for each chain that a job has taken."""
_WRITE_SECONDS = 1.0


class Job:
    """This process as one of several jobs. It takes chains and reports its progress to the parent in a file."""

    def __init__(self, path: Path) -> None:
        """Describe the job whose files begin with `path`."""
        self._file, self._claims = path.with_suffix(".json"), path.parent / CLAIMS
        self._state: dict[str, Any] = {"chain": "", "doing": "", "epochs": 0.0, "rate": 0.0, "finished": []}
        self._epochs: dict[tuple[str, int], float] = {}
        """Epochs of the runs of the current chain that are done, by name and length."""
        self._trained = 0.0
        self._began = self._written = 0.0

    @classmethod
    @functools.cache
    def current(cls) -> Job | None:
        """Return the job that this process is, or None."""
        return cls(Path(os.environ[VARIABLE])) if VARIABLE in os.environ else None

    def take(self, chains: Sequence[str]) -> Iterator[str]:
        """Yield the chains that no other job has taken. A chain counts as finished when the next one is asked for."""
        with watching_epochs(self._watch):
            for chain in chains:
                try:
                    (self._claims / chain).touch(exist_ok=False)
                except FileExistsError:
                    continue
                self._epochs.clear()
                self._write(chain=chain, doing="", epochs=0.0)
                yield chain
                self._write(chain="", finished=[*self._state["finished"], chain])

    def _watch(self, name: str, done: float, epochs: int, loaded: bool) -> None:
        """Note how many epochs of a run are done. Epochs that were loaded do not count for the rate."""
        now, run = time.monotonic(), (name, epochs)
        if run in self._epochs and not loaded:
            self._trained += max(0.0, done - self._epochs[run])
        self._began = self._began or now
        self._epochs[run] = done
        if now - self._written >= _WRITE_SECONDS:
            rate = self._trained / max(now - self._began, 1e-9)
            self._write(doing=name, epochs=sum(self._epochs.values()), rate=rate)

    def _write(self, **changes: Any) -> None:
        self._state |= changes
        self._written = time.monotonic()
        with suppress(OSError):  # a display must not end a training
            write_atomically(self._file, json.dumps(self._state).encode(), durable=False)
