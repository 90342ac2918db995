"""The processes among which one piece of work is shared out: all that the work needs to know of a launch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class Ranks(Protocol):
    """Processes that compute one thing together; `World` is one."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def on_all(self, work: Callable[[], Result]) -> Result:
        """Run `work` on every rank; if it raises on any, every rank raises."""

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over ranks."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision of the launch."""


class OneProcess:
    """This process by itself, in the precision it is in."""

    rank, size = 0, 1

    def on_all(self, work: Callable[[], Result]) -> Result:
        """Run `work` here."""
        return work()

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the tensor itself."""
        return tensor

    def autocast(self) -> AbstractContextManager[Any]:
        """Change no precision."""
        return nullcontext()


ONE_PROCESS = OneProcess()


def sum_over_ranks(ranks: Ranks, work: Callable[[], Tensor]) -> Tensor:
    """Return the sum of what `work` gives on each rank; if it raises on any, every rank raises.

    No rank enters the sum before all can, so none is left waiting there.
    """
    # one process has nobody to agree with, and need not wait for its device to do so
    return work() if ranks.size == 1 else ranks.sum(ranks.on_all(work))


def joined_over_ranks(ranks: Ranks, own_N: Tensor) -> Tensor:
    """Return the bool vectors of all ranks, one after another in their order; some may be empty. All on the CPU."""
    if ranks.size == 1:
        return own_N
    lengths = torch.zeros(ranks.size, dtype=torch.int64)
    lengths[ranks.rank] = len(own_N)
    ends = ranks.sum(lengths).cumsum(0)
    end = int(ends[ranks.rank])
    all_N = torch.zeros(int(ends[-1]), dtype=torch.uint8)
    all_N[end - len(own_N) : end] = own_N
    return ranks.sum(all_N).bool()
