"""Save and load training states in the directory of the unfinished run (rank 0)."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.config import SaveUnit
from harness.distributed.world import World
from harness.lineage.nodes.record import metric_rows, metrics_of
from harness.runs.run import Measurements, RunDescription
from harness.runs.unfinished import NotSavedError, Unfinished
from harness.training.resume import TrainingState

_log = logging.getLogger(__name__)
WARNING_SECONDS = 60.0
"""Least time between two warnings that a state cannot be saved."""


@dataclass(frozen=True)
class SavingInterval:
    """Interval between two saved states of a training. It is also saved when asked to stop.

    `every` 0 means that no states are saved at intervals.
    """

    every: float
    unit: SaveUnit
    steps_per_epoch: int


class EnvironmentCheck:
    """Warn once about each difference between a resumed or reused run and this launch.

    Code, threads and device may change bits but enter no key.
    """

    def __init__(self, code: Mapping[str, str]) -> None:
        self.code = dict(code)
        self._said: set[str] = set()

    def now(self, config: Mapping[str, Any]) -> dict[str, str]:
        """Return the current environment of a run with this config."""
        return environment(self.code, config)

    def compare(self, what: str, then: Mapping[str, str], now: Mapping[str, str]) -> None:
        """Log the warning "`what` with …" if facts known in both environments differ.

        Args:
            what: Start of the message.
            then: The environment that a record or state names.
            now: The current environment.
        """
        differ = (name for name in sorted(now) if name in then and then[name] != now[name])
        text = ", ".join(f"{name} {then[name]} (now {now[name]})" for name in differ)
        if text and text not in self._said:
            self._said.add(text)
            _log.warning(f"{what} with {text}; its numbers may differ")


def environment(code: Mapping[str, str], config: Mapping[str, Any]) -> dict[str, str]:
    """Return code version, launch and device of a record as flat text values. Unknown (None) values are omitted."""
    known = config.get("launch", {}) | config.get("hardware", {}).get("cuda", {})
    return dict(code) | {name: str(value) for name, value in known.items() if value is not None}


_HEADER: dict[str, type | tuple[type, ...]] = {
    "epoch": int,
    "step": int,
    "seconds": (int, float),
    "scaler": dict,
    "started_ms": int,
    "circumstances": dict,
}


def _check_header(header: Mapping[str, Any]) -> None:
    """Raise ValueError unless the header of a state has all fields, with values of the right types."""
    for name, expected in _HEADER.items():
        if not isinstance(header.get(name), expected):
            raise ValueError(f"its header has {name} = {header.get(name)!r:.60}")
    metrics_of(header.get("metrics"))


class StateSaver:
    """Saves and loads the states of one training. Implements `harness.training.resume.SavesStates`."""

    def __init__(
        self,
        world: World,
        unfinished: Unfinished,
        description: RunDescription,
        interval: SavingInterval,
        environment_check: EnvironmentCheck,
    ) -> None:
        self.world, self.unfinished, self.description, self.interval = world, unfinished, description, interval
        self.environment_check = environment_check
        self.measured = Measurements()
        """The metrics of this run. After `load` they include those from before the interruption."""
        by_steps = interval.unit == "steps" and interval.every
        self.most_steps = max(1, int(interval.every)) if by_steps else None
        self._saved_at = 0, time.monotonic()
        self._warned_at = -WARNING_SECONDS

    def due(self, epoch: int, steps: int) -> bool:
        """Return whether it is time to save, after `steps` steps of `epoch`."""
        (steps_then, then), interval = self._saved_at, self.interval
        if self.unfinished.is_gone:
            return True  # `save` says so: without the directory, the training would be lost at its end
        if interval.every <= 0:
            return False
        if interval.unit == "minutes":
            return time.monotonic() - then >= 60 * interval.every
        done = epoch * interval.steps_per_epoch + steps - steps_then
        return done >= interval.every * (interval.steps_per_epoch if interval.unit == "epochs" else 1)

    def save(self, state: TrainingState) -> None:
        """Save rank 0's `state` together with the metrics so far. All ranks must call this.

        A state that cannot be written is a warning. The next one is saved when it is due. The last one must be saved.
        """

        def write() -> None:
            header = {
                "epoch": state.epoch,
                "step": state.step,
                "seconds": state.seconds,
                "scaler": state.scaler,
                "metrics": metric_rows(self.measured.metrics),
                "started_ms": self.measured.started_ms,
                "circumstances": self.environment_check.now(self.description.config),
            }
            try:
                self.unfinished.save(header, state.tensors, (state.epoch, state.step))
            except NotSavedError as error:
                if state.is_last:
                    raise
                self._warn(f"{error.problem}. The training continues, and saves again when the next state is due")

        self.world.on_main(write)
        self._saved_at = state.epoch * self.interval.steps_per_epoch + state.step, time.monotonic()

    def _warn(self, text: str) -> None:
        """Log a warning at most once a minute, since states may be due after every step."""
        if time.monotonic() - self._warned_at > WARNING_SECONDS:
            self._warned_at = time.monotonic()
            _log.warning(text)

    def load(self) -> TrainingState | None:
        """Return the newest intact state on every rank, and restore the metrics saved with it.

        Returns:
            None if there is no state.
        """
        found = self.world.on_main(lambda: self.unfinished.newest(_check_header))
        if not self.world.main_says(lambda: found is not None):
            return None
        header = json.loads(self.world.share_text(json.dumps(found[0] if found else None)))
        tensors = self.world.share(found[1] if found else {})
        self.measured.metrics[:] = metrics_of(header["metrics"])
        self.measured.started_ms = header["started_ms"]
        state = TrainingState(header["epoch"], header["step"], header["seconds"], tensors, header["scaler"])
        # Use on_main, so that the other ranks wait here, and not in gradient reduction with its shorter timeout.
        self.world.on_main(lambda: self._say(state, header["circumstances"]))
        self._saved_at = state.epoch * self.interval.steps_per_epoch + state.step, time.monotonic()
        return state

    def _say(self, state: TrainingState, then: dict[str, str]) -> None:
        name, saved_at = self.description.name, self.unfinished.saved_at()
        when = f" of {saved_at:%Y-%m-%d %H:%M:%S}" if saved_at else ""
        _log.info(
            f"{name!r} resumes at epoch {state.epoch}, step {state.step}, from the state{when} "
            f"in {self.unfinished.directory}"
        )
        self.environment_check.compare(
            f"{name!r} was started", then, self.environment_check.now(self.description.config)
        )
