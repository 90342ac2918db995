"""Batches of uint8 images in a keyed order, shared out over ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch

    from harness.common.seeds import SgdNoise


class Batch(NamedTuple):
    """One rank's share of a global batch; its tensors are the caller's to keep."""

    images_NHWC: torch.Tensor  # uint8, C = spec.channels
    labels_N: torch.Tensor  # int64
    indices_N: torch.Tensor  # int64, positions in the split


class SplitReader(Protocol):
    """Reads one split onto one device; the FFCV loader and the memory loader differ in this alone."""

    @property
    def num_samples(self) -> int:
        """Samples of the whole split."""

    def batches(self, indices_N: np.ndarray, key: int | None, batch_size: int) -> Iterator[Batch]:
        """Yield these samples in order, augmented under `key` unless it is None; the last batch may be smaller."""


@dataclass(frozen=True)
class TrainOrder:
    """How one epoch's permutation is cut into global batches and these into ranks' slices."""

    num_samples: int
    global_batch_size: int
    rank: int
    world_size: int
    chosen: np.ndarray | None = field(default=None, compare=False)
    """Positions in the split of the `num_samples` that are used, int64; None: the split has no others."""
    steps_per_epoch: int = field(init=False)
    """Whole global batches in these samples."""
    batch_size: int = field(init=False)
    """Samples of a global batch that fall to one rank."""

    def __post_init__(self) -> None:
        _check_rank(self.rank, self.world_size)
        if self.global_batch_size < 1:
            raise ValueError(f"global batch size is {self.global_batch_size}; it must be at least 1")
        if self.num_samples < self.global_batch_size:
            raise ValueError(
                f"the training set has {self.num_samples} samples, fewer than one global batch of "
                f"{self.global_batch_size}; take a smaller batch"
            )
        if self.global_batch_size % self.world_size:
            raise ValueError(
                f"global batch size {self.global_batch_size} is not divisible by {self.world_size} processes; "
                f"take a multiple of {self.world_size}, or a number of processes that divides it"
            )
        object.__setattr__(self, "steps_per_epoch", self.num_samples // self.global_batch_size)
        object.__setattr__(self, "batch_size", self.global_batch_size // self.world_size)

    def indices(
        self, noise: SgdNoise, epoch: int, skip_steps: int, num_steps: int | None, every: int = 1
    ) -> np.ndarray:
        """Return this rank's sample indices, int64 (steps, batch_size): rows of permutation[s·B + r·B/W …].

        Raises ValueError if the steps asked for are not in the epoch.
        """
        steps = self.steps_per_epoch
        stop = steps if num_steps is None else skip_steps + num_steps
        if not 0 <= skip_steps <= stop <= steps:
            raise ValueError(f"steps {skip_steps} to {stop} of an epoch were asked for; it has steps 0 to {steps}")
        used = noise.permutation(epoch, self.num_samples)[: steps * self.global_batch_size]
        used = used if self.chosen is None else self.chosen[used]
        return used.reshape(steps, self.world_size, self.batch_size)[skip_steps:stop:every, self.rank]


@dataclass(frozen=True)
class TrainLoader:
    """Training batches of one rank, a function of (noise, epoch) alone."""

    reader: SplitReader
    order: TrainOrder

    def among(self, chosen: np.ndarray) -> TrainLoader:
        """Return a loader of these samples alone, int64 positions in the split; an epoch has fewer batches."""
        return replace(self, order=replace(self.order, num_samples=len(chosen), chosen=chosen))

    @property
    def num_samples(self) -> int:
        """Samples of an epoch, before the last incomplete batch is dropped."""
        return self.order.num_samples

    @property
    def steps_per_epoch(self) -> int:
        """⌊num_samples / global_batch_size⌋: the last incomplete batch is dropped."""
        return self.order.steps_per_epoch

    def epoch(
        self,
        noise: SgdNoise,
        epoch: int,
        skip_steps: int = 0,
        num_steps: int | None = None,
        augment: bool = True,
        every: int = 1,
    ) -> Iterator[Batch]:
        """Yield this rank's batches of `num_steps` steps from skip_steps on, or of every `every`-th of them."""
        indices_SN = self.order.indices(noise, epoch, skip_steps, num_steps, every)
        key = noise.key("augment", epoch) if augment else None
        return self.reader.batches(indices_SN.reshape(-1), key, self.order.batch_size)


@dataclass(frozen=True)
class EvalLoader:
    """One rank's share of a split: each sample once over all ranks, unaugmented, none padded, tail kept."""

    reader: SplitReader
    share: range
    batch_size: int

    @property
    def num_samples(self) -> int:
        """Samples of the whole split, over all ranks."""
        return self.reader.num_samples

    def __iter__(self) -> Iterator[Batch]:
        """Yield this rank's share in batches of at most batch_size."""
        return self.reader.batches(np.arange(self.share.start, self.share.stop), None, self.batch_size)


def eval_share(num_samples: int, rank: int, world_size: int) -> range:
    """Return the sample indices that `rank` evaluates: contiguous, disjoint and complete over the ranks."""
    _check_rank(rank, world_size)
    return range(rank * num_samples // world_size, (rank + 1) * num_samples // world_size)


def _check_rank(rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size} processes does not exist; ranks are 0 to world size − 1")
