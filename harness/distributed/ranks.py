"""Minimal interface to the processes of a launch, for computations that are split over ranks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class Ranks(Protocol):
    """The operations that a computation split over ranks needs. `World` and `OneProcess` implement them."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def on_all(self, work: Callable[[], Result]) -> Result:
        """Run `work` on every rank. If it raises on one rank, every rank raises."""

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over ranks."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context manager for the launch's mixed precision."""


class OneProcess:
    """A single process that keeps the current precision."""

    rank, size = 0, 1

    def on_all(self, work: Callable[[], Result]) -> Result:
        """Run `work`."""
        return work()

    def sum(self, tensor: Tensor) -> Tensor:
        """Return `tensor` unchanged."""
        return tensor

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context manager that does nothing."""
        return nullcontext()


ONE_PROCESS = OneProcess()


def sum_over_ranks(ranks: Ranks, work: Callable[[], Tensor]) -> Tensor:
    """Run `work` on every rank and return the sum of the results.

    If it raises on one rank, every rank raises. No rank enters the sum before all have succeeded, so none hangs there.
    """
    # With one process, skip the agreement, which would synchronise with the device.
    return work() if ranks.size == 1 else ranks.sum(ranks.on_all(work))


def joined_over_ranks(ranks: Ranks, own_N: Tensor) -> Tensor:
    """Concatenate the bool vectors of all ranks, in order of ranks.

    Args:
        own_N: This rank's vector on the CPU. It may be empty, and its length may differ between ranks.
    """
    if ranks.size == 1:
        return own_N
    lengths = torch.zeros(ranks.size, dtype=torch.int64)
    lengths[ranks.rank] = len(own_N)
    ends = ranks.sum(lengths).cumsum(0)
    end = int(ends[ranks.rank])
    all_N = torch.zeros(int(ends[-1]), dtype=torch.uint8)
    all_N[end - len(own_N) : end] = own_N
    return ranks.sum(all_N).bool()
