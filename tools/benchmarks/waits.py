"""Count the places in which the real loop waits for the device, by file and line."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.distributed.world import World
from tools.benchmarks.measure import Row
from tools.benchmarks.networks import WARM_UP_STEPS, BatchesOf, Case, SparseNetwork

OWN = tuple(f"{Path(__file__).resolve().parents[2] / folder}/" for folder in ("harness", "tools", "tests"))
STEPS, SKIPPED = 40, WARM_UP_STEPS + 2  # those to warm up end with a wait, to start a clock
MEETING = "hold"
"""The loop's function in which all ranks agree: it has to wait, but only every second or 50 steps."""


def waits(world: World) -> Iterator[Row]:
    """Count the waits in 40 steps of aws through the feed."""
    on_gpu = world.device.type == "cuda"
    sizes = ("resnet20", 128, 32) if on_gpu else ("resnet8", 4, 16)
    case = Case(*sizes, num_classes=10, steps=STEPS + SKIPPED - WARM_UP_STEPS, rounds=1)
    network, watch, batches = (
        SparseNetwork(case, world),
        Watch(),
        case.augmented(world.device, 50_000 if on_gpu else 64),
    )
    network.way("aws", batches)()  # lets the device settle on its kernels
    network.way("aws", watch.during(batches))()
    if on_gpu:  # a CPU has nothing to wait for
        places = (f"{number} × {place}" for place, number in watch.seen.most_common(8))
        yield Row("waits", watch.seen.total(), note=", ".join(places))
    yield Row("waits in meetings", watch.in_meetings)


class Watch:
    """Counts PyTorch's warnings of operations that wait for the device, where the harness or a tool asks for them."""

    def __init__(self, skipped: int = SKIPPED, steps: int = STEPS) -> None:
        self.skipped, self.steps, self.seen, self.in_meetings = skipped, steps, Counter[str](), 0

    def during(self, batches: BatchesOf) -> BatchesOf:
        """Return the same batches; the watch goes on and off as the loop asks for those to be watched."""

        def watched(number: int) -> Iterator[tuple[Tensor, Tensor]]:
            stream, on_gpu = batches(number), torch.cuda.is_available()
            yield from islice(stream, self.skipped)
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.showwarning = self._note
                tell: Any = torch.cuda.set_sync_debug_mode if on_gpu else lambda mode: None
                tell("warn")
                try:
                    yield from islice(stream, self.steps)
                finally:
                    tell("default")
            yield from stream

        return watched

    def _note(self, message: Warning | str, *where: object, **more: object) -> None:
        stack = [frame for frame in traceback.extract_stack() if frame.filename != __file__]
        own = [frame for frame in stack if frame.filename.startswith(OWN)]
        if "synchronizing" in str(message) and any(frame.name == MEETING for frame in own):
            self.in_meetings += 1
        elif "synchronizing" in str(message):
            nearest = own[-1] if own else stack[-1]
            self.seen[f"{Path(nearest.filename).name}:{nearest.lineno}"] += 1
