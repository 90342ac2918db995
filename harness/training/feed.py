"""From uint8 batches of a loader to normalised device batches, with the progress a person sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from harness.common.seeds import SgdNoise
from harness.data import DataSpec, EvalLoader, TrainLoader, normalize

ImageBatch = tuple[torch.Tensor, torch.Tensor]


class TrainFeed:
    """This rank's training batches (images_NCHW, labels_N), normalised on the device."""

    def __init__(self, loader: TrainLoader, spec: DataSpec, device: torch.device) -> None:
        self.loader, self.spec, self.device = loader, spec, device
        self.on_step: Callable[[], None] = lambda: None

    @property
    def steps_per_epoch(self) -> int:
        """Full global batches in an epoch; the incomplete last one is dropped."""
        return self.loader.steps_per_epoch

    def epoch(
        self, noise: SgdNoise, epoch: int, skip_steps: int = 0, num_steps: int | None = None, every: int = 1
    ) -> Iterator[ImageBatch]:
        """Yield batches of `epoch` under u = `noise`: `num_steps` (None: all) after `skip_steps`, or one of `every`."""
        for batch in self.loader.epoch(noise, epoch, skip_steps=skip_steps, num_steps=num_steps, every=every):
            yield _normalised(batch.images_NHWC, batch.labels_N, self.spec, self.device)
            self.on_step()


class TestFeed:
    """This rank's share of the test split (images_NCHW, labels_N), normalised on the device."""

    __test__ = False  # not a pytest class

    def __init__(self, loader: EvalLoader, spec: DataSpec, device: torch.device) -> None:
        self.loader, self.spec, self.device = loader, spec, device

    @property
    def num_images(self) -> int:
        """Size of the whole split."""
        return self.loader.num_samples

    def __iter__(self) -> Iterator[ImageBatch]:
        for batch in self.loader:
            yield _normalised(batch.images_NHWC, batch.labels_N, self.spec, self.device)


def _normalised(images_NHWC: torch.Tensor, labels_N: torch.Tensor, spec: DataSpec, device: torch.device) -> ImageBatch:
    images_NHWC = images_NHWC.to(device, non_blocking=True)
    return normalize(images_NHWC, spec, True), labels_N.to(device, non_blocking=True)
