"""Batches of random images that lie on the device, so that no disk and no copy is timed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.common.seeds import SgdNoise
from harness.data.loaders import TrainLoader, TrainOrder
from harness.data.memory_loader import ResidentSplit
from harness.data.spec import CropFlip, DataSpec, RawSource
from harness.training.feed import TrainFeed, normalize
from tools.benchmarks.device.ways import BatchesOf, Case


def random_spec(case: Case, padding: int = 0) -> DataSpec:
    """Return the entry of made-up RGB images that are cropped out of `padding` pixels and flipped."""
    return DataSpec(
        name="random",
        num_classes=case.num_classes,
        channels=3,
        image_size=case.image_size,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        augmentation=CropFlip(padding, flip=True),
        raw=RawSource("random"),
    )


def normalised(case: Case, device: torch.device) -> BatchesOf:
    """Return one batch, already normalised, as often as asked."""
    images_NCHW = torch.randn(case.batch_size, 3, case.image_size, case.image_size, device=device)
    images_NCHW = images_NCHW.to(memory_format=torch.channels_last)
    labels_N = torch.randint(case.num_classes, (case.batch_size,), device=device)
    return lambda steps: ((images_NCHW, labels_N) for _ in range(steps))


def from_uint8(case: Case, device: torch.device) -> BatchesOf:
    """Return one batch of uint8 images as often as asked, normalised anew each time."""
    shape = (case.batch_size, case.image_size, case.image_size, 3)
    images_NHWC = torch.randint(256, shape, dtype=torch.uint8, device=device)
    labels_N = torch.randint(case.num_classes, (case.batch_size,), device=device)
    spec = random_spec(case)
    return lambda steps: ((normalize(images_NHWC, spec, True), labels_N) for _ in range(steps))


def augmented(case: Case, device: torch.device, num_images: int) -> BatchesOf:
    """Return the batches of the memory loader: keyed by seed and epoch, cropped, flipped and normalised."""
    size, padding = case.image_size, case.image_size // 8
    images_NHWC = torch.randint(256, (num_images, size, size, 3), dtype=torch.uint8, device=device)
    padded_NHWC = F.pad(images_NHWC, (0, 0, padding, padding, padding, padding))
    labels_N = torch.randint(case.num_classes, (num_images,), device=device)
    spec = random_spec(case, padding)
    order = TrainOrder(num_images, case.batch_size, rank=0, world_size=1)
    feed = TrainFeed(TrainLoader(ResidentSplit(spec, padded_NHWC, labels_N), order), spec, device)

    def batches(steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = 0
        while steps > 0:
            part = min(steps, feed.steps_per_epoch)
            yield from feed.epoch(SgdNoise(1, ("benchmark",)), epoch, num_steps=part)
            steps, epoch = steps - part, epoch + 1

    return batches
