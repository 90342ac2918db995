"""FFCV loader with keyed augmentation.

Batches do not depend on the number of workers or ranks, nor on a resume. FFCV's own augmentations draw from numba's
per-thread generators, so they are not reproducible. This loader therefore replaces them.

Each sample enters FFCV as three words (index, key, augment?), in the order of our traversal class. One compiled kernel
per file reads, crops and flips the sample directly from the mapped file into the batch. A process compiles a kernel
once and reuses it for all epochs and trainings.
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

# Select OpenMP. numba prefers TBB if it is installed (e.g. with OpenCV's development package), but TBB prevents the
# process from exiting. "workqueue" aborts if two loaders run at once.
os.environ.setdefault("NUMBA_THREADING_LAYER", "omp")
_torch_threads = torch.get_num_threads()
import numba  # noqa: E402
import numba.typed  # noqa: E402

# FFCV keeps two entries in a numba dictionary, which costs two seconds of compilation per start. Use a Python dict.
with patch.object(numba.typed, "Dict", dict):
    import ffcv  # sets torch's thread count to one (restored below)
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
from harness.data.ffcv.beton import check_beton  # noqa: E402

torch.set_num_threads(_torch_threads)

_numba: Any = numba.config
_POLL_SECONDS = 1.0


def _set_numba_threads_only(num_threads: int) -> None:
    Compiler.num_threads = num_threads
    numba.set_num_threads(num_threads)


# FFCV also sets torch's thread count, from its own thread, during training. A loader must not do that.
Compiler.set_num_threads = _set_numba_threads_only


def _compile_reader(manager: OSCacheManager) -> Any:
    def read(address: Any, storage: Any) -> Any:
        size = storage[2][np.searchsorted(storage[1], address)]
        return storage[0][address : address + size]

    return Compiler.compile(read)


# FFCV's own function marks the mapped file as read-only by changing numba's shared type of byte arrays. Earlier
# compilations for this type are then not found, and numba raises KeyError or recompiles endlessly.
OSCacheManager.compile_reader = _compile_reader


class MappedFile(OSCacheManager):
    """FFCV's memory map without its page dictionaries.

    They take a gigabyte for ImageNet, and only FFCV's other modes use them.
    """

    def __init__(self, reader: Any) -> None:
        self.reader = reader
        order = np.argsort(reader.alloc_table["ptr"])
        self.ptrs, self.sizes = reader.alloc_table["ptr"][order], reader.alloc_table["size"][order]
        self.context = OSCacheContext(self)


class KeyedOrder(TraversalOrder):
    """Traversal order that is set before each epoch.

    It consists of rows (index, key, augment?), uint64 (N, 3).
    """

    def __init__(self, loader: ffcv.Loader) -> None:
        super().__init__(loader)
        # FFCV only reads the length of the first order. No later epoch may be longer.
        self.rows_N3 = np.zeros((loader.reader.num_samples, 3), np.uint64)

    def sample_order(self, epoch: int) -> np.ndarray:
        """Return the rows that BetonReader has set."""
        return self.rows_N3


ffcv_loader_module.ORDER_MAP[KeyedOrder] = KeyedOrder


class LabelAndIndex(IntDecoder):
    """Decoder of labels, together with the sample's index: int64 (N, 2)."""

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        """Declare (label, index) per sample."""
        return replace(previous_state, jit_mode=True, shape=(2,), dtype=self.dtype), AllocationQuery((2,), self.dtype)

    def generate_code(self) -> Callable[..., Any]:
        """Return the function of this pipeline stage."""
        return ffcv_kernels.label_and_index


class KeyedCrop(SimpleRGBImageDecoder):
    """Decoder that also augments and selects channels: uint8 (N, H, W, spec.channels)."""

    def __init__(self, spec: DataSpec, num_workers: int) -> None:
        super().__init__()
        self.spec = spec
        self.num_workers = num_workers

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        """Declare the batch. The kernel's threads own the scratch memory for decoding."""
        shape = (self.spec.image_size, self.spec.image_size, self.spec.channels)
        return (
            replace(previous_state, jit_mode=True, shape=shape, dtype=np.dtype("u1")),
            AllocationQuery(shape, np.dtype("u1")),
        )

    def generate_code(self) -> Callable[..., Any]:
        """Return the function that calls the compiled kernel of this data set."""
        largest = int(self.metadata["height"].max()) * int(self.metadata["width"].max()) * 3
        return ffcv_kernels.decoder(self.spec.augmentation, self.spec.image_size, self.num_workers, largest)


class BetonReader:
    """A .beton file and its compiled pipeline.

    It serves any number of epochs, orders and batch sizes.
    """

    def __init__(self, path: Path, spec: DataSpec, num_workers: int) -> None:
        check_beton(path, spec.num_classes, spec.image_size if spec.fixed_size else None)
        # FFCV has no argument for the class of its memory map, so patch it.
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
        """Return the number of samples in the file."""
        return int(self._loader.reader.num_samples)

    def batches(self, indices_N: np.ndarray, key: int | None, batch_size: int, device: torch.device) -> Iterator[Batch]:
        """Yield these samples in order. See `SplitReader`.

        The next batch is copied to the device before the current one is yielded.
        """
        # Start FFCV's thread on the requested order.
        rows_N3 = np.empty((len(indices_N), 3), np.uint64)
        rows_N3[:, 0], rows_N3[:, 1], rows_N3[:, 2] = indices_N, key or 0, key is not None
        self._loader.traversal_order.rows_N3 = rows_N3
        self._loader.batch_size = batch_size
        stream = iter(self._loader)
        # Copy one batch ahead.
        copy = _CudaCopy if device.type == "cuda" else _Copy
        last: _Copy | None = None
        try:
            for _ in range(0, len(indices_N), batch_size):
                before = last
                if before is not None:
                    before.finish()  # the next call allows FFCV to overwrite its buffers
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
    """Return the tensors of the next slot in FFCV's queue.

    Raises:
        RuntimeError: FFCV's thread died. FFCV's own `next` would wait forever.
    """
    while True:
        try:
            result = stream.output_queue.get(timeout=_POLL_SECONDS)
        except Empty:
            if stream.is_alive():
                continue
            raise RuntimeError("FFCV's reader thread died; see the error that it printed") from None
        _, tensors = result
        return tensors


def _stop(stream: Any) -> None:
    """End FFCV's thread at any point of the epoch. Draining the queue unblocks it."""
    stream.terminate_event.set()
    while stream.is_alive():
        while not stream.output_queue.empty():
            stream.output_queue.get_nowait()
        stream.join(timeout=0.01)
    stream.close()


class _Copy:
    """A batch copied out of FFCV's buffers, which FFCV then reuses."""

    def __init__(self, images: torch.Tensor, labels_and_indices: torch.Tensor, device: torch.device) -> None:
        both = labels_and_indices.to(device, copy=True)
        self._batch = Batch(images.to(device, copy=True), both[:, 0].contiguous(), both[:, 1].contiguous())

    def finish(self) -> None:
        """Wait until FFCV may overwrite its buffers."""

    @property
    def batch(self) -> Batch:
        """Return the batch, for work queued on the device from now on."""
        return self._batch


class _CudaCopy(_Copy):
    """Asynchronous copy on a side stream. An event marks its end."""

    def __init__(self, images: torch.Tensor, labels_and_indices: torch.Tensor, device: torch.device) -> None:
        with torch.cuda.stream(_side_stream(device)):
            on_device = images.to(device, non_blocking=True)
            both = labels_and_indices.to(device, non_blocking=True)
            self._batch = Batch(on_device, both[:, 0].contiguous(), both[:, 1].contiguous())
            self._copied = torch.cuda.Event()
            self._copied.record(_side_stream(device))

    def finish(self) -> None:
        """Wait for this copy only, not for training steps queued later."""
        self._copied.synchronize()

    @property
    def batch(self) -> Batch:
        """Return the batch. The current stream waits for the copy. The host does not."""
        stream = torch.cuda.current_stream(self._batch.labels_N.device)
        stream.wait_event(self._copied)
        for tensor in self._batch:
            tensor.record_stream(stream)
        return self._batch


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def available_workers(num_workers: int | None) -> int:
    """Return the number of loader threads.

    None and −1 mean all cores available to this process.

    Raises:
        ValueError: The number is below 1, or above numba's maximum.
    """
    if num_workers is None or num_workers == -1:
        num_workers = len(os.sched_getaffinity(0))
    if not 1 <= num_workers <= _numba.NUMBA_NUM_THREADS:
        raise ValueError(
            f"num_workers is {num_workers}; it must lie between 1 and {_numba.NUMBA_NUM_THREADS} "
            "(or −1 for all available cores; NUMBA_NUM_THREADS sets the maximum)"
        )
    return num_workers


@dataclass(frozen=True)
class FfcvReader:
    """A .beton file whose batches go to one device."""

    beton: BetonReader
    device: torch.device

    @property
    def num_samples(self) -> int:
        """Return the number of samples in the file."""
        return self.beton.num_samples

    def batches(self, indices_N: np.ndarray, key: int | None, batch_size: int) -> Iterator[Batch]:
        """Yield these samples in order. See `SplitReader`."""
        return self.beton.batches(indices_N, key, batch_size, self.device)


def ffcv_readers(spec: DataSpec, paths: dict[str, Path]) -> Callable[..., SplitReader]:
    """Return a function of (split, num_workers, device) that opens a split.

    A file is opened and compiled once per number of workers.
    """
    beton = cache(lambda split, workers: BetonReader(paths[split], spec, workers))
    return lambda split, num_workers, device: FfcvReader(
        beton(split, available_workers(num_workers)), torch.device(device)
    )
