"""Move uint8 batches from a loader to the device and normalise them there."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch

from harness.common.seeds import SgdNoise
from harness.data import DataSpec, EvalLoader, TrainLoader

ImageBatch = tuple[torch.Tensor, torch.Tensor]


class TrainFeed:
    """This rank's training batches (images_NCHW, labels_N), normalised on the device."""

    def __init__(self, loader: TrainLoader, spec: DataSpec, device: torch.device) -> None:
        self.loader, self.spec, self.device = loader, spec, device
        self.steps_per_epoch = loader.steps_per_epoch
        """Number of full global batches in an epoch. An incomplete last batch is dropped."""

    def among(self, chosen: np.ndarray) -> TrainFeed:
        """Return a feed of a subset of the training images.

        Args:
            chosen: Positions in the training split, int64.
        """
        return TrainFeed(self.loader.among(chosen), self.spec, self.device)

    def epoch(
        self, noise: SgdNoise, epoch: int, skip_steps: int = 0, num_steps: int | None = None, every: int = 1
    ) -> Iterator[ImageBatch]:
        """Yield this rank's batches of `epoch` under u = `noise`.

        Args:
            skip_steps: The number of batches to skip at the start of the epoch.
            num_steps: The number of steps to cover after the skipped ones. None: until the end of the epoch.
            every: Yield only every `every`-th of these batches.
        """
        for batch in self.loader.epoch(noise, epoch, skip_steps=skip_steps, num_steps=num_steps, every=every):
            images_NHWC = batch.images_NHWC.to(self.device, non_blocking=True)
            yield normalize(images_NHWC, self.spec), batch.labels_N.to(self.device, non_blocking=True)


class TestFeed:
    """This rank's part of the test split as batches (images_NCHW, labels_N), normalised on the device."""

    __test__ = False  # not a pytest class

    def __init__(self, loader: EvalLoader, spec: DataSpec, device: torch.device) -> None:
        self.loader, self.spec, self.device = loader, spec, device
        self.num_images = loader.num_samples
        """Size of the whole split, over all ranks."""

    def __iter__(self) -> Iterator[ImageBatch]:
        for batch in self.loader:
            images_NHWC = batch.images_NHWC.to(self.device, non_blocking=True)
            yield normalize(images_NHWC, self.spec), batch.labels_N.to(self.device, non_blocking=True)


def normalize(images_NHWC: torch.Tensor, spec: DataSpec, channels_last: bool = True) -> torch.Tensor:
    """Return (pixels/255 − mean) / std as NCHW.

    Args:
        images_NHWC: uint8 (N, H, W, C) with C = spec.channels.
        channels_last: Whether the result has the memory format channels_last or contiguous.

    Returns:
        Images in torch's default dtype (usually float32), on the device of the input.

    Raises:
        ValueError: The input has another dtype or shape.
    """
    if images_NHWC.dtype != torch.uint8 or images_NHWC.ndim != 4 or images_NHWC.shape[3] != spec.channels:
        raise ValueError(
            f"{spec.name} images must be uint8 (N, H, W, {spec.channels}); "
            f"got {images_NHWC.dtype} {tuple(images_NHWC.shape)}"
        )
    format_ = torch.channels_last if channels_last else torch.contiguous_format
    dtype = torch.get_default_dtype()
    images_NCHW = images_NHWC.permute(0, 3, 1, 2).to(dtype, memory_format=format_)
    mean_C11, scale_C11 = _constants(spec.mean, spec.std, images_NHWC.device, dtype)
    return images_NCHW.sub_(mean_C11).mul_(scale_C11)


@cache  # once per device, because creating a tensor from a list synchronises with the device
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return 255·mean and 1/(255·std), (C, 1, 1) each."""
    # The first call may come from an evaluation. Inference tensors would be unusable in training.
    with torch.inference_mode(False):
        mean_C11 = torch.tensor([255 * m for m in mean], dtype=dtype, device=device)[:, None, None]
        scale_C11 = torch.tensor([1 / (255 * s) for s in std], dtype=dtype, device=device)[:, None, None]
    return mean_C11, scale_C11
