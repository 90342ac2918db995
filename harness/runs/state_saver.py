"""Where the states of a training go: into rank 0's directory of its unfinished run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from harness.common.logging import say
from harness.config import SaveUnit
from harness.distributed.world import World
from harness.lineage.nodes.record import Metric
from harness.runs.node import Draft
from harness.runs.unfinished import Unfinished
from harness.training.resume import TrainingState


@dataclass(frozen=True)
class Saving:
    """How often a training is saved, apart from when it is asked to stop; 0 is never."""

    every: float
    unit: SaveUnit
    steps_per_epoch: int

    def due(self, steps: int, seconds: float) -> bool:
        """Whether so many steps, or so many seconds, since the last time are enough."""
        if self.every <= 0:
            return False
        if self.unit == "minutes":
            return seconds >= 60 * self.every
        return steps >= self.every * (self.steps_per_epoch if self.unit == "epochs" else 1)


class Circumstances:
    """Warns once of each difference that may change bits and is in no key."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def compare(self, what: str, then: Mapping[str, str], now: Mapping[str, str]) -> None:
        """Say "`what` with …" if anything known of both differs."""
        differ = (name for name in sorted(now) if name in then and then[name] != now[name])
        text = ", ".join(f"{name} {then[name]} (now {now[name]})" for name in differ)
        if text and text not in self._said:
            self._said.add(text)
            say(f"warning: {what} with {text}; its numbers may differ")


class RunKeeper:
    """The states of one training (a `harness.training.resume.StateKeeper`)."""

    def __init__(
        self, world: World, unfinished: Unfinished, draft: Draft, saving: Saving, circumstances: Circumstances
    ) -> None:
        self.world, self.unfinished, self.draft, self.saving = world, unfinished, draft, saving
        self.circumstances = circumstances
        self.on_resume: Callable[[int], None] = lambda steps: None
        """Told how many steps are done already, when a training goes on."""
        self._at = 0, time.monotonic()

    @property
    def most_steps(self) -> int | None:
        """Ranks meet at least this often."""
        return max(1, int(self.saving.every)) if self.saving.unit == "steps" and self.saving.every else None

    def due(self, epoch: int, steps: int) -> bool:
        """Whether it is time to save, after `steps` steps of `epoch`."""
        steps_then, then = self._at
        return self.saving.due(self._steps(epoch, steps) - steps_then, time.monotonic() - then)

    def save(self, state: TrainingState) -> None:
        """Keep rank 0's `state`, with what has been measured so far."""

        def write() -> None:
            header = {
                "epoch": state.epoch,
                "step": state.step,
                "seconds": state.seconds,
                "scaler": state.scaler,
                "metrics": [metric.to_list() for metric in self.draft.metrics],
                "started_ms": self.draft.started_ms,
                "circumstances": self.draft.circumstances,
            }
            self.unfinished.save(header, state.tensors, (state.epoch, state.step))

        self.world.on_main(write)
        self._at = self._steps(state.epoch, state.step), time.monotonic()

    def load(self) -> TrainingState | None:
        """Return the newest whole state on every rank, and take over what was measured before it."""
        found = self.world.on_main(self.unfinished.newest)
        text = self.world.share_text(json.dumps(found[0] if found else None))
        header = json.loads(text)
        if header is None:
            return None
        tensors = self.world.share(found[1] if found else {})
        self.draft.metrics[:] = [Metric.from_list(row) for row in header["metrics"]]
        self.draft.started_ms = header["started_ms"]
        state = TrainingState(header["epoch"], header["step"], header["seconds"], tensors, header["scaler"])
        # on_main: where it looks at the disk, the others must wait here and not with their gradients
        self.world.on_main(lambda: self._say(state, header["circumstances"]))
        steps = self._steps(state.epoch, state.step)
        self._at = steps, time.monotonic()
        self.on_resume(steps)
        return state

    def _say(self, state: TrainingState, then: dict[str, str]) -> None:
        saved_at = self.unfinished.saved_at()
        when = f" of {saved_at:%Y-%m-%d %H:%M:%S}" if saved_at else ""
        say(
            f"{self.draft.name!r} goes on at epoch {state.epoch}, step {state.step}, from the state{when} "
            f"in {self.unfinished.directory}"
        )
        self.circumstances.compare(f"{self.draft.name!r} was begun", then, self.draft.circumstances)

    def _steps(self, epoch: int, step: int) -> int:
        return epoch * self.saving.steps_per_epoch + step
