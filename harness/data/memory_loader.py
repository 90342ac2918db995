"""The in-memory loader: the whole split as uint8 on the device, augmentation by gathering there.

The same batches as the FFCV loader, bit for bit; needs neither ffcv nor a file system once loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from harness.data.augment import crop_flips
from harness.data.loader import Batch, EvalLoader, TrainLoader, TrainOrder, eval_share
from harness.data.spec import CropFlip, DataSpec
from harness.seeds import SgdNoise


@dataclass(frozen=True)
class ResidentSplit:
    """One split on one device, images padded with black for the crops."""

    padded_NHWC: torch.Tensor
    labels_N: torch.Tensor
    padding: int

    @classmethod
    def load(cls, path: Path, padding: int, device: torch.device) -> ResidentSplit:
        """Read a split's safetensors file onto the device."""
        tensors = load_file(path)
        padded = F.pad(tensors["images_NHWC"], (0, 0, padding, padding, padding, padding))
        return cls(padded.to(device), tensors["labels"].to(device), padding)

    def crop(self, indices: torch.Tensor, top: torch.Tensor, left: torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
        """Return the crops of the samples, uint8 (N, H, W, C), flipped left to right where `flip`; all (N,)."""
        _, padded_height, padded_width, channels = self.padded_NHWC.shape
        height, width = padded_height - 2 * self.padding, padded_width - 2 * self.padding
        rows = top[:, None] + torch.arange(height, device=top.device)
        columns = torch.arange(width, device=top.device)
        columns = left[:, None] + torch.where(flip[:, None], columns.flip(0), columns)
        pixels = (indices[:, None] * padded_height + rows)[:, :, None] * padded_width + columns[:, None, :]
        # One gather of whole pixels: faster than advanced indexing on CPU, one kernel on CUDA.
        chosen = self.padded_NHWC.view(-1, channels).index_select(0, pixels.view(-1))
        return chosen.view(len(indices), height, width, channels)

    def plain(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the samples as they are, uint8 (N, H, W, C)."""
        height, width = (size - self.padding for size in self.padded_NHWC.shape[1:3])
        return self.padded_NHWC[indices, self.padding : height, self.padding : width]


def memory_loaders(
    spec: DataSpec, paths: dict[str, Path]
) -> tuple[Callable[..., TrainLoader], Callable[..., EvalLoader]]:
    """Return the makers of training and test loaders; each split is read once per device."""
    if not isinstance(spec.augmentation, CropFlip):
        raise ValueError(f"the in-memory loader crops and flips images of one size; {spec.name} needs the ffcv loader")
    padding = spec.augmentation.padding
    resident = cache(lambda split, device: ResidentSplit.load(paths[split], padding, device))

    def train(*, num_workers: int | None, device: torch.device | str, **share: int) -> MemoryTrainLoader:
        split = resident("train", torch.device(device))
        return MemoryTrainLoader(spec, split, TrainOrder(num_samples=len(split.labels_N), **share))

    def test(
        *, batch_size: int, rank: int, world_size: int, num_workers: int | None, device: torch.device | str
    ) -> MemoryEvalLoader:
        split = resident("test", torch.device(device))
        return MemoryEvalLoader(split, eval_share(len(split.labels_N), rank, world_size), batch_size)

    return train, test


@dataclass(frozen=True)
class MemoryTrainLoader:
    """Training batches of one rank from a resident split."""

    spec: DataSpec
    split: ResidentSplit
    order: TrainOrder

    @property
    def num_samples(self) -> int:
        """Samples of the whole split."""
        return self.order.num_samples

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in the split."""
        return self.order.steps_per_epoch

    def epoch(
        self, noise: SgdNoise, epoch: int, skip_steps: int = 0, num_steps: int | None = None, augment: bool = True
    ) -> Iterator[Batch]:
        """Yield this rank's batches; see TrainLoader."""
        indices_SN = self.order.indices(noise, epoch, skip_steps, num_steps)
        device = self.split.labels_N.device
        on_device = partial(torch.as_tensor, device=device)
        indices = on_device(indices_SN)
        # One draw and one copy to the device for the whole epoch.
        draws: tuple[Any, ...] = ()
        if augment:
            assert isinstance(self.spec.augmentation, CropFlip)
            top, left, flip = crop_flips(noise.key("augment", epoch), indices_SN, self.spec.augmentation.padding)
            draws = (on_device(top), on_device(left), on_device(flip & self.spec.augmentation.flip))
        return self._batches(indices, draws)

    def _batches(self, indices_SN: torch.Tensor, draws: tuple[torch.Tensor, ...]) -> Iterator[Batch]:
        for step, indices in enumerate(indices_SN):
            if draws:
                images = self.split.crop(indices, *(values[step] for values in draws))
            else:
                images = self.split.plain(indices)
            yield Batch(images, self.split.labels_N[indices], indices.clone())


@dataclass(frozen=True)
class MemoryEvalLoader:
    """One rank's share of a resident split, unaugmented."""

    split: ResidentSplit
    share: range
    batch_size: int

    @property
    def num_samples(self) -> int:
        """Samples of the whole split, over all ranks."""
        return len(self.split.labels_N)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(self.share.start, self.share.stop, self.batch_size):
            stop = min(start + self.batch_size, self.share.stop)
            indices = torch.arange(start, stop, device=self.split.labels_N.device)
            yield Batch(self.split.plain(indices), self.split.labels_N[indices], indices)
