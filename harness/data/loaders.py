"""Batches of uint8 images in a reproducible order, divided among ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch

    from harness.common.seeds import SgdNoise


class Batch(NamedTuple):
    """One rank's share of a global batch. The caller may keep its tensors."""

    images_NHWC: torch.Tensor  # uint8, C = spec.channels
    labels_N: torch.Tensor  # int64
    indices_N: torch.Tensor  # int64, positions in the split


class SplitReader(Protocol):
    """Reads one split onto one device. Only this part differs between the two loaders."""

    @property
    def num_samples(self) -> int:
        """Return the number of samples in the whole split."""

    def batches(self, indices_N: np.ndarray, key: int | None, batch_size: int) -> Iterator[Batch]:
        """Yield these samples in order.

        Args:
            indices_N: Positions in the split.
            key: Key of the augmentation, or None for unaugmented images.
            batch_size: Samples per batch. The last batch may be smaller.
        """


@dataclass(frozen=True)
class TrainOrder:
    """Division of an epoch's permutation into global batches and slices of ranks."""

    num_samples: int
    global_batch_size: int
    rank: int
    world_size: int
    chosen: np.ndarray | None = field(default=None, compare=False)
    """Positions in the split of the `num_samples` to use, int64. None: the whole split."""
    steps_per_epoch: int = field(init=False)
    """Number of full global batches."""
    batch_size: int = field(init=False)
    """Samples per rank in a global batch."""

    def __post_init__(self) -> None:
        _check_rank(self.rank, self.world_size)
        if self.global_batch_size < 1:
            raise ValueError(f"global batch size is {self.global_batch_size}; it must be at least 1")
        if self.num_samples < self.global_batch_size:
            raise ValueError(
                f"the training set has {self.num_samples} samples, fewer than one global batch of "
                f"{self.global_batch_size}; use a smaller batch"
            )
        if self.global_batch_size % self.world_size:
            raise ValueError(
                f"global batch size {self.global_batch_size} is not divisible by {self.world_size} processes; "
                f"use a multiple of {self.world_size}, or a number of processes that divides it"
            )
        object.__setattr__(self, "steps_per_epoch", self.num_samples // self.global_batch_size)
        object.__setattr__(self, "batch_size", self.global_batch_size // self.world_size)

    def indices(
        self, noise: SgdNoise, epoch: int, skip_steps: int, num_steps: int | None, every: int = 1
    ) -> np.ndarray:
        """Return this rank's sample indices, int64 (steps, batch_size).

        Let B be the global batch size, r the rank and W the world size. The row of step s has the entries of the
        permutation from s·B + r·B/W up to s·B + (r + 1)·B/W.

        Args:
            noise: The noise u, which draws the permutation.
            epoch: The epoch.
            skip_steps: First step.
            num_steps: Number of steps. None: up to the end of the epoch.
            every: Return only every `every`-th of these steps.

        Raises:
            ValueError: The epoch does not have these steps.
        """
        steps = self.steps_per_epoch
        stop = steps if num_steps is None else skip_steps + num_steps
        if not 0 <= skip_steps <= stop <= steps:
            raise ValueError(f"steps {skip_steps} to {stop} were requested; the epoch has steps 0 to {steps}")
        used = noise.permutation(epoch, self.num_samples)[: steps * self.global_batch_size]
        used = used if self.chosen is None else self.chosen[used]
        return used.reshape(steps, self.world_size, self.batch_size)[skip_steps:stop:every, self.rank]


@dataclass(frozen=True)
class TrainLoader:
    """Training batches of one rank, a pure function of noise and epoch."""

    reader: SplitReader
    order: TrainOrder

    def among(self, chosen: np.ndarray) -> TrainLoader:
        """Return a loader of a subset of the samples, with shorter epochs.

        Args:
            chosen: Positions in the split, int64.
        """
        return replace(self, order=replace(self.order, num_samples=len(chosen), chosen=chosen))

    @property
    def num_samples(self) -> int:
        """Return the samples per epoch, before the last incomplete batch is dropped."""
        return self.order.num_samples

    @property
    def steps_per_epoch(self) -> int:
        """Return ⌊num_samples / global_batch_size⌋: the last incomplete batch is dropped."""
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
        """Yield this rank's batches of one epoch.

        Args:
            noise: The noise u, which determines order and augmentation.
            epoch: The epoch.
            skip_steps: First step.
            num_steps: Number of steps. None: up to the end of the epoch.
            augment: Whether to augment the images.
            every: Yield only every `every`-th of these steps.
        """
        indices_SN = self.order.indices(noise, epoch, skip_steps, num_steps, every)
        key = noise.key("augment", epoch) if augment else None
        return self.reader.batches(indices_SN.reshape(-1), key, self.order.batch_size)


@dataclass(frozen=True)
class EvalLoader:
    """One rank's share of a split, for evaluation.

    All ranks together yield each sample exactly once. There is no augmentation and no padding, and the last batch may
    be incomplete.
    """

    reader: SplitReader
    share: range
    batch_size: int

    @property
    def num_samples(self) -> int:
        """Return the number of samples in the whole split, over all ranks."""
        return self.reader.num_samples

    def __iter__(self) -> Iterator[Batch]:
        """Yield this rank's share in batches of at most batch_size."""
        return self.reader.batches(np.arange(self.share.start, self.share.stop), None, self.batch_size)


def eval_share(num_samples: int, rank: int, world_size: int) -> range:
    """Return the contiguous range of samples that `rank` evaluates. Ranks cover all samples, without overlap."""
    _check_rank(rank, world_size)
    return range(rank * num_samples // world_size, (rank + 1) * num_samples // world_size)


def _check_rank(rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size} processes does not exist; ranks are 0 to world size − 1")
