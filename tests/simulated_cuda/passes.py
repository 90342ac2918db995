"""Find the waits that happen during a pass over batches."""

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
    """The number of batches so far, and the waits during passes."""

    record: Record
    batches: int = 0
    """Number of training batches so far."""

    def waits(self, inside: str) -> list[Wait]:
        """Return the waits during passes of one kind.

        Waits of the periodic synchronisation of the ranks, `_Meeting.hold`, are left out.

        Args:
            inside: TRAINING or EVALUATION.
        """
        waits = (wait for wait in self.record.waits if wait.inside == inside)
        return [wait for wait in waits if "_Meeting.hold" not in wait.callers]


@contextmanager
def watched(record: Record) -> Iterator[Passes]:
    """Set `record.inside` during every pass over training and test batches.

    A pass lasts from the request of its first batch to the end of its iterator.

    Yields:
        The counted batches, with access to their waits.
    """
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

    # the first normalisation copies constants to the device, which waits once per process
    normalize(torch.zeros(1, 8, 8, 1, dtype=torch.uint8, device=DEVICE), DATASETS["digits"], True)
    record.clear()
    with (
        patch.object(TrainFeed, "epoch", epoch),
        patch.object(TestFeed, "__iter__", lambda self: through(test(self), EVALUATION)),
    ):
        yield passes
