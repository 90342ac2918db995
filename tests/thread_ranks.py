"""Simulate the ranks of a distributed job by threads of one process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

SECONDS = 60.0
"""Timeout of a barrier. A rank that waits longer fails with BrokenBarrierError, so that no test hangs."""


class ThreadRank:
    """A rank with a part of the interface of `World`.

    Args:
        rank: Rank of this thread.
        size: World size.
        board: Shared list with one slot per rank, for gathering.
        barrier: Shared barrier of all ranks.
    """

    def __init__(self, rank: int, size: int, board: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size, self.board, self.barrier = rank, size, board, barrier

    def _from_all(self, mine: Any) -> list[Any]:
        self.board[self.rank] = mine
        self.barrier.wait(SECONDS)
        everyones = list(self.board)
        self.barrier.wait(SECONDS)
        return everyones

    def on_all(self, work: Callable[[], Any]) -> Any:
        """Run `work` on every rank. If it raises on one rank, all ranks raise.

        Raises:
            Exception: The rank's own exception, if it failed.
            RuntimeError: If only another rank failed.
        """
        result, failure = None, None
        try:
            result = work()
        except Exception as error:
            failure = error
        failed = [rank for rank, error in enumerate(self._from_all(failure)) if error is not None]
        if failed:
            raise failure or RuntimeError(f"rank {failed[0]} failed")
        return result

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over all ranks, in the order of ranks."""
        return torch.stack(self._from_all(tensor)).sum(0)

    def share(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return rank 0's tensors."""
        return {name: tensor.clone() for name, tensor in self._from_all(tensors)[0].items()}

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context without mixed precision."""
        return nullcontext()


def on_ranks(size: int, work: Callable[[ThreadRank], Any]) -> list[Any]:
    """Run `work` in one thread per rank.

    Returns:
        For each rank, the result of `work` or the exception that it raised.
    """
    board: list[Any] = [None] * size
    barrier = threading.Barrier(size)

    def one(rank: int) -> Any:
        try:
            return work(ThreadRank(rank, size, board, barrier))
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))
