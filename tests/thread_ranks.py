"""Ranks that are threads of this process: what several processes compute together, without launching any."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

SECONDS = 60.0
"""A rank that waits so long for another fails with BrokenBarrierError: a test must end."""


class ThreadRank:
    """One of `size` ranks; `board` and `barrier` are common to all."""

    def __init__(self, rank: int, size: int, board: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size, self.board, self.barrier = rank, size, board, barrier

    def _from_all(self, mine: Any) -> list[Any]:
        self.board[self.rank] = mine
        self.barrier.wait(SECONDS)
        everyones = list(self.board)
        self.barrier.wait(SECONDS)
        return everyones

    def on_all(self, work: Callable[[], Any]) -> Any:
        """Run `work` on every rank; if it raises on any, all raise."""
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
        """Add up in the order of ranks."""
        return torch.stack(self._from_all(tensor)).sum(0)

    def autocast(self) -> AbstractContextManager[Any]:
        """Full precision."""
        return nullcontext()


def on_ranks(size: int, work: Callable[[ThreadRank], Any]) -> list[Any]:
    """Return what `work` gives on each rank, or the exception that it ended with."""
    board: list[Any] = [None] * size
    barrier = threading.Barrier(size)

    def one(rank: int) -> Any:
        try:
            return work(ThreadRank(rank, size, board, barrier))
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))
