"""The general loader: a torch DataLoader over any map-style dataset, with random numbers seeded for each sample.

It reads prepared images of one size, with batches equal to those of the other loaders, and data sets of a user's file
(see user_file.py). It is slower than the others: Python handles each sample on its own.

Each index that the sampler gives to a worker has the key of the epoch's augmentation. So a sample depends on noise,
epoch and index, and not on workers, ranks or a resume.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import random
import signal
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader

from harness.data.augment import draw
from harness.data.loaders import Batch, SplitReader
from harness.data.memory_loader import ResidentSplit
from harness.data.spec import DataSpec

Sample = tuple[torch.Tensor, int, int]
Request = tuple[int, int | None]
"""Index of a sample, and the key of the augmentation or None."""

_SEED = np.uint64(1 << 32)
"""Draw number of a sample's seed. Crops and boxes use small ones."""
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Samples(Protocol):
    """A map-style dataset that takes a sample's index with the key of its augmentation."""

    def __len__(self) -> int:
        """Return the number of samples in the split."""

    def __getitem__(self, request: Request) -> Sample:
        """Return image (uint8, height × width × channels), label and index.

        Raises:
            SampleError: The sample cannot be made.
        """


class SampleError(ValueError):
    """A sample cannot be made. The message is one line."""


class StoredSamples:
    """Prepared images of one size, augmented one at a time by the formulas of the memory loader."""

    def __init__(self, split: ResidentSplit) -> None:
        self.split = split

    def __len__(self) -> int:
        """Return the number of samples in the split."""
        return self.split.num_samples

    def __getitem__(self, request: Request) -> Sample:
        """Return one sample. See `Samples`."""
        index, key = request
        images, labels, _ = next(self.split.batches(np.array([index]), key, 1))
        return images[0], int(labels[0]), index


@contextmanager
def seeded(key: int | None, index: int) -> Iterator[None]:
    """Seed torch, NumPy and random from (key, index) within the block, and restore their states after it.

    Args:
        key: Key of the epoch's augmentation. None has one seed for each index.
        index: Position of the sample.
    """
    with np.errstate(over="ignore"):
        seed = int(draw(np.uint64(key or 0), np.uint64(index), _SEED + np.uint64(key is None)))
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


class _Failure:
    """Message of a sample that failed in a worker. An exception would arrive with the worker's traceback as text."""

    def __init__(self, message: str) -> None:
        self.message = message


class _Careful:
    """Return failures of samples instead of raising them."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __getitem__(self, request: Request) -> Sample | _Failure:
        try:
            return self.samples[request]
        except SampleError as error:
            return _Failure(str(error))


class _Order:
    """Batches of requests, set before each epoch."""

    def __init__(self) -> None:
        self.batches: Sequence[Sequence[Request]] = ()

    def __iter__(self) -> Iterator[Sequence[Request]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _collate(samples: Sequence[Sample | _Failure]) -> tuple[torch.Tensor, ...] | _Failure:
    for sample in samples:
        if isinstance(sample, _Failure):
            return sample
    images, labels, indices = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels), torch.tensor(indices)


def begin_worker(_: int) -> None:
    """Let a worker end by the usual signals. It would inherit the handlers of the training process."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)


class TorchReader:
    """One split whose batches a DataLoader collects. See `SplitReader`."""

    def __init__(self, samples: Samples, num_workers: int, device: torch.device) -> None:
        """Make a reader. Workers start with the first batch.

        Args:
            samples: The split.
            num_workers: 1 loads in this process. N > 1 starts N worker processes.
            device: Device of the batches.
        """
        self.samples, self.device = samples, device
        self.workers = num_workers if num_workers > 1 else 0
        self._idle: list[DataLoader[Any]] = []

    @property
    def num_samples(self) -> int:
        """Return the number of samples in the split."""
        return len(self.samples)

    def batches(self, indices_N: np.ndarray, key: int | None, batch_size: int) -> Iterator[Batch]:
        """Yield these samples in order. See `SplitReader`."""
        # Epochs that are open at once have a DataLoader each. Workers stay for the next epoch.
        is_new = not self._idle
        loader = self._loader() if is_new else self._idle.pop()
        requests = [(index, key) for index in indices_N.tolist()]
        order: Any = loader.batch_sampler
        order.batches = [requests[start : start + batch_size] for start in range(0, len(requests), batch_size)]
        epoch = iter(loader)
        if self.workers and is_new:
            # Before torch and multiprocessing end the workers at exit, each of which would count as a crash.
            atexit.register(_close, weakref.ref(self))
        try:
            for made in epoch:
                if isinstance(made, _Failure):
                    raise ValueError(made.message)
                yield Batch(*(tensor.to(self.device, non_blocking=True) for tensor in made))
        finally:
            self._idle.append(loader)

    def close(self) -> None:
        """End all workers. The next batches start others."""
        self._idle.clear()  # a DataLoader without references ends its workers

    def _loader(self) -> DataLoader[Any]:
        more: dict[str, Any] = {}
        if self.workers:
            # A user's classes have no module that a new interpreter could import, so workers are forks.
            context = multiprocessing.get_context("fork")
            more = {"persistent_workers": True, "multiprocessing_context": context, "worker_init_fn": begin_worker}
        return DataLoader(
            _Careful(self.samples),  # type: ignore[arg-type]
            batch_sampler=_Order(),  # type: ignore[arg-type]
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
            # The loader draws a seed for its workers. Without a generator of its own, it would take torch's.
            generator=torch.Generator(),
            **more,
        )


def _close(reader: weakref.ref[TorchReader]) -> None:
    if (found := reader()) is not None:
        found.close()


def torch_readers(open_split: Callable[[str], Samples]) -> Callable[..., SplitReader]:
    """Return a function of (split, num_workers, device) that opens a split.

    Args:
        open_split: Returns the samples of train or test. Called once for each.
    """
    opened = cache(open_split)

    @cache
    def reader(split: str, workers: int, device: torch.device) -> TorchReader:
        return TorchReader(opened(split), workers, device)

    return lambda split, num_workers, device: reader(split, _workers(num_workers), torch.device(device))


def stored_readers(spec: DataSpec, paths: dict[str, Path]) -> Callable[..., SplitReader]:
    """Return the readers of prepared images of one size."""
    return torch_readers(lambda split: StoredSamples(ResidentSplit.load(spec, paths[split], torch.device("cpu"))))


def _workers(num_workers: int | None) -> int:
    """Return the number of workers. None and −1 mean all cores available to this process."""
    if num_workers is None or num_workers == -1:
        return len(os.sched_getaffinity(0))
    if num_workers < 1:
        raise ValueError(f"num_workers is {num_workers}; it must be 1 or more (or −1 for all available cores)")
    return num_workers
