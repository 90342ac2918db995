"""Which waits happen while a pass over batches is under way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch

from harness.data import DATASETS
from harness.training.feed import TestFeed, TrainFeed, normalize
from tests.simulated_cuda.label import DEVICE, Record, Wait

TRAINING, EVALUATION = "a pass over training batches", "a pass over test batches"


@dataclass
class Passes:
    """Batches that have gone by, and the waits among them."""

    record: Record
    batches: int = 0
    """Of training."""

    def waits(self, inside: str) -> list[Wait]:
        """Return the waits from the first batch of a pass to its last, meetings of the ranks aside."""
        waits = (wait for wait in self.record.waits if wait.inside == inside)
        return [wait for wait in waits if "_Meeting.hold" not in wait.callers]


@contextmanager
def watched(record: Record) -> Iterator[Passes]:
    """Mark in `record` the time from when the first batch of a pass is asked for until there are no more."""
    passes = Passes(record)
    train, test = TrainFeed.epoch, TestFeed.__iter__

    def through(batches: Iterator[Any], inside: str) -> Iterator[Any]:
        record.inside = inside
        try:
            for batch in batches:
                passes.batches += inside == TRAINING
                yield batch
        finally:
            record.inside = ""

    def epoch(self: TrainFeed, *args: Any, **options: Any) -> Iterator[Any]:
        return through(train(self, *args, **options), TRAINING)

    # once in a process its constants are copied to the device
    normalize(torch.zeros(1, 8, 8, 1, dtype=torch.uint8, device=DEVICE), DATASETS["digits"], True)
    record.clear()
    with (
        patch.object(TrainFeed, "epoch", epoch),
        patch.object(TestFeed, "__iter__", lambda self: through(test(self), EVALUATION)),
    ):
        yield passes
