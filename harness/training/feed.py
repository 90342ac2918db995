"""From uint8 batches of a loader to normalised batches on the device."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from harness.common.seeds import SgdNoise
from harness.data import DataSpec, EvalLoader, TrainLoader, normalize

ImageBatch = tuple[torch.Tensor, torch.Tensor]


class TrainFeed:
    """This rank's training batches (images_NCHW, labels_N), normalised on the device."""

    def __init__(self, loader: TrainLoader, spec: DataSpec, device: torch.device) -> None:
        self.loader, self.spec, self.device = loader, spec, device
        self.steps_per_epoch = loader.steps_per_epoch
        """Full global batches in an epoch; the incomplete last one is dropped."""

    def epoch(
        self, noise: SgdNoise, epoch: int, skip_steps: int = 0, num_steps: int | None = None, every: int = 1
    ) -> Iterator[ImageBatch]:
        """Yield batches of `epoch` under u = `noise`: `num_steps` (None: all) after `skip_steps`, or one of `every`."""
        for batch in self.loader.epoch(noise, epoch, skip_steps=skip_steps, num_steps=num_steps, every=every):
            yield _normalised(batch.images_NHWC, batch.labels_N, self.spec, self.device)


class TestFeed:
    """This rank's share of the test split (images_NCHW, labels_N), normalised on the device."""

    __test__ = False  # not a pytest class

    def __init__(self, loader: EvalLoader, spec: DataSpec, device: torch.device) -> None:
        self.loader, self.spec, self.device = loader, spec, device
        self.num_images = loader.num_samples
        """Size of the whole split."""

    def __iter__(self) -> Iterator[ImageBatch]:
        for batch in self.loader:
            yield _normalised(batch.images_NHWC, batch.labels_N, self.spec, self.device)


def _normalised(images_NHWC: torch.Tensor, labels_N: torch.Tensor, spec: DataSpec, device: torch.device) -> ImageBatch:
    images_NHWC = images_NHWC.to(device, non_blocking=True)
    return normalize(images_NHWC, spec, True), labels_N.to(device, non_blocking=True)
