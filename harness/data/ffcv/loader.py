"""The FFCV loader with keyed augmentation: the same batches on any number of workers and ranks, and after a resume.

FFCV's own augmentations draw from numba's per-thread generators and cannot be reproduced. Here every sample travels
through FFCV as three words (index, key, augment?), given by our traversal order; one compiled kernel per file reads,
crops and flips the sample straight from the mapped file into the batch. A kernel is compiled once a process and reused
for all epochs and trainings.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from queue import Empty
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from harness.data.loaders import Batch, SplitReader
from harness.data.spec import DataSpec

# TBB, which numba prefers and OpenCV's development package brings, never lets a process end; "workqueue" aborts with
# two loaders at once.
os.environ.setdefault("NUMBA_THREADING_LAYER", "omp")
_torch_threads = torch.get_num_threads()
import numba  # noqa: E402
import numba.typed  # noqa: E402

# Two entries in a numba dictionary, read from Python alone, would cost two seconds of compiling at every start.
with patch.object(numba.typed, "Dict", dict):
    import ffcv  # (sets torch's threads to one)
import ffcv.loader.loader as ffcv_loader_module  # noqa: E402
from ffcv.fields.basics import IntDecoder  # noqa: E402
from ffcv.fields.rgb_image import SimpleRGBImageDecoder  # noqa: E402
from ffcv.memory_managers.os_cache import OSCacheContext, OSCacheManager  # noqa: E402
from ffcv.pipeline.allocation_query import AllocationQuery  # noqa: E402
from ffcv.pipeline.compiler import Compiler  # noqa: E402
from ffcv.pipeline.state import State  # noqa: E402
from ffcv.transforms import ToTensor  # noqa: E402
from ffcv.traversal_order.base import TraversalOrder  # noqa: E402

from harness.data.ffcv import kernels as ffcv_kernels  # noqa: E402

torch.set_num_threads(_torch_threads)

_numba: Any = numba.config
_POLL_SECONDS = 1.0


def _set_numba_threads_only(num_threads: int) -> None:
    Compiler.num_threads = num_threads
    numba.set_num_threads(num_threads)


# FFCV sets torch's threads too, from its own thread, while the network trains. A loader must not do that.
Compiler.set_num_threads = _set_numba_threads_only


def _compile_reader(manager: OSCacheManager) -> Any:
    def read(address: Any, storage: Any) -> Any:
        size = storage[2][np.searchsorted(storage[1], address)]
        return storage[0][address : address + size]

    return Compiler.compile(read)


# FFCV's own declares the mapped file read-only by changing numba's one shared type of byte arrays. Everything compiled
# for such arrays before can then no longer be found: numba raises KeyError or compiles without end.
OSCacheManager.compile_reader = _compile_reader


class MappedFile(OSCacheManager):
    """FFCV's memory map without its dictionaries of pages, a gigabyte for ImageNet, which only its other modes need."""

    def __init__(self, reader: Any) -> None:
        self.reader = reader
        order = np.argsort(reader.alloc_table["ptr"])
        self.ptrs, self.sizes = reader.alloc_table["ptr"][order], reader.alloc_table["size"][order]
        self.context = OSCacheContext(self)


class KeyedOrder(TraversalOrder):
    """The order we say: rows (index, key, augment?) uint64 (N, 3) of the next epoch."""

    def __init__(self, loader: ffcv.Loader) -> None:
        super().__init__(loader)
        # The first order is only measured: no epoch may be longer.
        self.rows_N3 = np.zeros((loader.reader.num_samples, 3), np.uint64)

    def sample_order(self, epoch: int) -> np.ndarray:
        """Return the rows put in place by BetonReader."""
        return self.rows_N3


ffcv_loader_module.ORDER_MAP[KeyedOrder] = KeyedOrder


class LabelAndIndex(IntDecoder):
    """Labels with the sample's index: int64 (N, 2)."""

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        """Declare (label, index) per sample."""
        return replace(previous_state, jit_mode=True, shape=(2,), dtype=self.dtype), AllocationQuery((2,), self.dtype)

    def generate_code(self) -> Callable[..., Any]:
        """Return the stage's function."""
        return ffcv_kernels.label_and_index


class KeyedCrop(SimpleRGBImageDecoder):
    """Decoder, augmentation and channel choice in one: uint8 (N, H, W, spec.channels)."""

    def __init__(self, spec: DataSpec, num_workers: int) -> None:
        super().__init__()
        self.spec = spec
        self.num_workers = num_workers

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        """Declare the batch; scratch for decoding belongs to the kernel's threads."""
        shape = (self.spec.image_size, self.spec.image_size, self.spec.channels)
        return (
            replace(previous_state, jit_mode=True, shape=shape, dtype=np.dtype("u1")),
            AllocationQuery(shape, np.dtype("u1")),
        )

    def generate_code(self) -> Callable[..., Any]:
        """Return the stage's function, which calls the compiled kernel of this data set."""
        largest = int(self.metadata["height"].max()) * int(self.metadata["width"].max()) * 3
        return ffcv_kernels.decoder(self.spec.augmentation, self.spec.image_size, self.num_workers, largest)


class BetonReader:
    """One .beton file with its compiled pipeline, for any number of epochs, orders and batch sizes."""

    def __init__(self, path: Path, spec: DataSpec, num_workers: int) -> None:
        # FFCV has no argument for the class of its memory map.
        with patch.object(ffcv_loader_module, "OSCacheManager", MappedFile):
            self._loader = ffcv.Loader(
                str(path),
                batch_size=1,  # set for each epoch
                num_workers=num_workers,
                os_cache=True,
                order=KeyedOrder,
                drop_last=False,
                pipelines={
                    "image": [KeyedCrop(spec, num_workers), ToTensor()],
                    "label": [LabelAndIndex(), ToTensor()],
                },
            )

    @property
    def num_samples(self) -> int:
        """Samples in the file."""
        return int(self._loader.reader.num_samples)

    def batches(self, indices_N: np.ndarray, key: int | None, batch_size: int, device: torch.device) -> Iterator[Batch]:
        """Yield the samples in the order given, augmented under `key` unless it is None.

        One batch is copied to the device ahead of the one that is yielded.
        """
        rows_N3 = np.empty((len(indices_N), 3), np.uint64)
        rows_N3[:, 0], rows_N3[:, 1], rows_N3[:, 2] = indices_N, key or 0, key is not None
        self._loader.traversal_order.rows_N3 = rows_N3
        self._loader.batch_size = batch_size
        stream = iter(self._loader)
        copy = _CudaCopy if device.type == "cuda" else _Copy
        last: _Copy | None = None
        try:
            for _ in range(0, len(indices_N), batch_size):
                before = last
                if before is not None:
                    before.finish()  # the next call lets FFCV write into the buffers it came from
                last = copy(*_next(stream), device)
                if before is not None:
                    yield before.batch
            if last is not None:
                yield last.batch
        finally:
            if last is not None:
                last.finish()
            _stop(stream)


def _next(stream: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the next slot's tensors; RuntimeError if FFCV's thread has died (its own `next` would wait for ever)."""
    while True:
        try:
            result = stream.output_queue.get(timeout=_POLL_SECONDS)
        except Empty:
            if stream.is_alive():
                continue
            raise RuntimeError("FFCV's reading thread died; the error it printed says why") from None
        _, tensors = result
        return tensors


def _stop(stream: Any) -> None:
    """End FFCV's thread, wherever the epoch was left: emptying the queue frees it from waiting there."""
    stream.terminate_event.set()
    while stream.is_alive():
        while not stream.output_queue.empty():
            stream.output_queue.get_nowait()
        stream.join(timeout=0.01)
    stream.close()


class _Copy:
    """A batch taken out of FFCV's buffers, which it will use again."""

    def __init__(self, images: torch.Tensor, labels_and_indices: torch.Tensor, device: torch.device) -> None:
        both = labels_and_indices.to(device, copy=True)
        self._batch = Batch(images.to(device, copy=True), both[:, 0].contiguous(), both[:, 1].contiguous())

    def finish(self) -> None:
        """Wait until FFCV may use its buffers again."""

    @property
    def batch(self) -> Batch:
        """The batch, for the work that is asked of the device from now on."""
        return self._batch


class _CudaCopy(_Copy):
    """The same while the device computes: on a stream of its own, its end marked by an event."""

    def __init__(self, images: torch.Tensor, labels_and_indices: torch.Tensor, device: torch.device) -> None:
        with torch.cuda.stream(_side_stream(device)):
            on_device = images.to(device, non_blocking=True)
            both = labels_and_indices.to(device, non_blocking=True)
            self._batch = Batch(on_device, both[:, 0].contiguous(), both[:, 1].contiguous())
            self._copied = torch.cuda.Event()
            self._copied.record(_side_stream(device))

    def finish(self) -> None:
        """Wait for the copy alone, begun a training step ago, and not for the steps that were asked for since."""
        self._copied.synchronize()

    @property
    def batch(self) -> Batch:
        """The batch; the current stream waits for the copy, this process does not."""
        stream = torch.cuda.current_stream(self._batch.labels_N.device)
        stream.wait_event(self._copied)
        for tensor in self._batch:
            tensor.record_stream(stream)
        return self._batch


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def available_workers(num_workers: int | None) -> int:
    """Return the number of loader threads: all cores this process may use for None or −1.

    Raises ValueError if it is 0, or more than numba was started with.
    """
    if num_workers is None or num_workers == -1:
        num_workers = len(os.sched_getaffinity(0))
    if not 1 <= num_workers <= _numba.NUMBA_NUM_THREADS:
        raise ValueError(
            f"num_workers is {num_workers}; 1 to {_numba.NUMBA_NUM_THREADS} threads are possible here "
            "(−1: all available cores; NUMBA_NUM_THREADS sets the most)"
        )
    return num_workers


@dataclass(frozen=True)
class FfcvReader:
    """One .beton file whose batches go to one device."""

    beton: BetonReader
    device: torch.device

    @property
    def num_samples(self) -> int:
        """Samples in the file."""
        return self.beton.num_samples

    def batches(self, indices_N: np.ndarray, key: int | None, batch_size: int) -> Iterator[Batch]:
        """Yield these samples in order; see `SplitReader`."""
        return self.beton.batches(indices_N, key, batch_size, self.device)


def ffcv_readers(spec: DataSpec, paths: dict[str, Path]) -> Callable[..., SplitReader]:
    """Return a function of (split, num_workers, device); a file is opened and compiled once per number of workers."""
    beton = cache(lambda split, workers: BetonReader(paths[split], spec, workers))
    return lambda split, num_workers, device: FfcvReader(
        beton(split, available_workers(num_workers)), torch.device(device)
    )
