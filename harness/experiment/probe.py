"""Measure for two seconds whether the loader or the device limits the trainings of a launch.

No bit of a result depends on it: an epoch's batches are a function of u, the timed network is another one, and torch's
generators are restored.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING

import torch

from harness.common.logging import is_quiet
from harness.common.machine import share_of_cores
from harness.common.seeds import SgdNoise
from harness.data.loaders import Batch, TrainLoader
from harness.masks import Mask
from harness.training.feed import normalize
from harness.training.loop import Remask, TrainStep, build_optimizer

if TYPE_CHECKING:
    from harness.experiment.experiment import Experiment

_log = logging.getLogger(__name__)

SECONDS = 1.0
"""Length of each of the two measurements, without their warm-up."""


@dataclass
class Probe:
    """Compares loader and device before the first training of a launch."""

    due: bool
    """Whether the comparison is still to be made. Equal on all ranks."""

    def run(self, experiment: Experiment, loader: TrainLoader, noise: SgdNoise) -> None:
        """Time loading alone, then training steps on one repeated batch, and log both. All ranks call this.

        Each rank measures at the same time. Rank 0 reports the slowest loader and the slowest device.

        Args:
            experiment: Network, settings and processes.
            loader: Training loader of this rank, which reads files.
            noise: u of the coming training.
        """
        world, threads = experiment.world, experiment.loader_threads
        self.due = False
        if world.main_says(is_quiet):
            return

        def measure() -> tuple[float, float]:
            loaded, batch = loading_rate(loader, noise, threads)
            # A second compiled network would take as long to compile as the first.
            return loaded, training_rate(experiment, loader, batch) if experiment.config.compile == "no" else 0.0

        found = torch.tensor(world.on_all(measure), dtype=torch.float64)
        loaded, needed = world.min(found).tolist()
        if world.is_main:
            most = share_of_cores(world.local_size) - 1
            slowest = "" if world.size == 1 else f"slowest of {world.size} processes: "
            raw = experiment.source.options.get("write_mode", "raw") == "raw"
            _log.info(slowest + verdict(loaded, needed, threads, most, raw=raw))


def verdict(loaded: float, needed: float, threads: int, most: int, *, raw: bool) -> str:
    """Return the line that names the limit, and the remedy if it is the loader.

    Args:
        loaded: Images/s of the loader of one process.
        needed: Images/s of its training steps. 0: not measured.
        threads: Threads of the loader.
        most: Threads that the process's cores allow.
        raw: Whether the images are stored uncompressed.
    """
    line = f"loader {_rounded(loaded)} images/s with {threads} thread{'s' * (threads > 1)}"
    if not needed:
        return f"{line}; compare it with the steps/s of training times the images of a process's batch"
    line += f"; training needs {_rounded(needed)}"
    if loaded >= needed:
        return f"{line}: the device is the limit"
    remedies = [f"use num_workers -1 for {most} threads"] if threads < most else ["give each process more cores"]
    remedies += [] if raw else ["prepare the data with --write-mode raw, or with a smaller --proportion"]
    return f"{line}: the loader is the limit; {', or '.join(remedies)}"


def _rounded(rate: float) -> str:
    return f"{float(f'{rate:.2g}'):,.10g}"


def loading_rate(loader: TrainLoader, noise: SgdNoise, threads: int) -> tuple[float, Batch]:
    """Load the first images of the coming training for about a second, and discard them.

    Returns:
        Images/s, and the first batch.
    """
    # Small batches keep a slow loader from exceeding the time.
    ranks = loader.order.world_size
    small = replace(loader.order, global_batch_size=ranks * min(loader.order.batch_size, 32 * threads))
    stream = _endless(replace(loader, order=small), noise)
    first, images, began = next(stream), 0, time.perf_counter()
    while (seconds := time.perf_counter() - began) < SECONDS:
        images += len(next(stream).labels_N)
    stream.close()
    return images / seconds, first


def _endless(loader: TrainLoader, noise: SgdNoise) -> Generator[Batch, None, None]:
    for epoch in count():
        yield from loader.epoch(noise, epoch)


def training_rate(experiment: Experiment, loader: TrainLoader, batch: Batch) -> float:
    """Train a fresh network on repetitions of `batch` for about a second.

    Returns:
        Images/s of this rank alone, without reducing gradients. 0 if its memory does not suffice.
    """
    world, config = experiment.world, experiment.config
    cuda = world.device.type == "cuda"
    parts = config.accumulation_steps
    most = max(loader.order.batch_size, 2 * parts)  # BatchNorm needs two images
    try:
        with torch.random.fork_rng(devices=[world.device] if cuda else []):
            # Phase: a network like that of the training. It has no SyncBatchNorm, for which ranks would wait.
            model = experiment.fresh_model().to(world.device).to(memory_format=torch.channels_last).train()
            optimizer = build_optimizer(model.parameters(), config.optim, fused=cuda)
            for group in optimizer.param_groups:
                group["lr"] = 0.0  # many steps on one batch could overflow
            step = TrainStep(
                model, world, optimizer, Remask({}, Mask({})), config.optim.max_grad_norm, parts, unrehearsed=False
            )

            def train(images: int) -> None:
                rows = torch.arange(images, device=world.device) % len(batch.labels_N)
                step.backward(normalize(batch.images_NHWC[rows], experiment.spec), batch.labels_N[rows])
                step.update()

            # Phase: time it. A CPU gets the largest batch that it trains quickly.
            least = most if cuda else min(most, 2 * parts)
            return _images_per_second(train, least, most, world.device)
    except torch.cuda.OutOfMemoryError:
        return 0.0
    finally:
        if cuda:
            torch.cuda.empty_cache()


def _images_per_second(train: Callable[[int], None], images: int, most: int, device: torch.device) -> float:
    def seconds(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            train(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    # The first step also warms up. It sets the batch size on a CPU, and only the second one is timed on a GPU.
    took = seconds(1)
    while device.type == "cpu" and took < SECONDS / 8 and images < most:
        images = min(2 * images, most)
        took = seconds(1)
    if device.type == "cuda":
        took = seconds(1)
    steps = int(SECONDS / took)
    return images * steps / seconds(steps) if steps else images / took
