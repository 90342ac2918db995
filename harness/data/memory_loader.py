"""The in-memory loader: the whole split as uint8 on the device, augmentation by gathering there.

The same batches as the FFCV loader, bit for bit; needs neither ffcv nor a file system once loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from harness.common.seeds import SgdNoise
from harness.data.augment import crop_flips, enlargement, flips, resized_crop_boxes
from harness.data.loaders import Batch, EvalLoader, TrainLoader, TrainOrder, eval_share
from harness.data.spec import CropFlip, DataSpec, ZoomFlip


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

    def zoom(self, indices: torch.Tensor, boxes_N4: torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
        """Return the boxes (top, left, height, width) of the samples enlarged to their size, uint8 (N, H, W, C)."""
        _, size, _, channels = self.padded_NHWC.shape
        low, weight = _tables(size, flip.device)
        top, left, height, width = boxes_N4.T
        columns = torch.arange(size, device=flip.device)
        columns = torch.where(flip[:, None], columns.flip(0), columns)
        ups, lower = low[height], weight[height].int()
        lefts, nearer = low[width[:, None], columns], weight[width[:, None], columns].int()
        downs, rights = (torch.minimum(a + 1, b[:, None] - 1) for a, b in ((ups, height), (lefts, width)))

        def pixels(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
            places = (indices[:, None] * size + top[:, None] + rows)[:, :, None] * size
            places = places + (left[:, None] + columns)[:, None, :]
            chosen = self.padded_NHWC.view(-1, channels).index_select(0, places.view(-1))
            return chosen.view(len(indices), size, size, channels).int()

        one, nearer, lower = 2 * size, nearer[:, None, :, None], lower[:, :, None, None]
        above = pixels(ups, lefts) * (one - nearer) + pixels(ups, rights) * nearer
        below = pixels(downs, lefts) * (one - nearer) + pixels(downs, rights) * nearer
        return ((above * (one - lower) + below * lower + one * one // 2) // (one * one)).to(torch.uint8)

    def plain(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the samples as they are, uint8 (N, H, W, C)."""
        height, width = (size - self.padding for size in self.padded_NHWC.shape[1:3])
        return self.padded_NHWC[indices, self.padding : height, self.padding : width]


@cache
def _tables(size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    low, weight = enlargement(size)
    with torch.inference_mode(False):  # kept for trainings, also if an evaluation asks first
        return _on_device(low, device), _on_device(weight, device)


def memory_loaders(
    spec: DataSpec, paths: dict[str, Path]
) -> tuple[Callable[..., TrainLoader], Callable[..., EvalLoader]]:
    """Return the makers of training and test loaders; each split is read once per device."""
    if not spec.fixed_size:
        raise ValueError(f"the in-memory loader keeps images of one size; {spec.name} needs the ffcv loader")
    padding = spec.augmentation.padding if isinstance(spec.augmentation, CropFlip) else 0
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


def _on_device(values: np.ndarray, device: torch.device) -> torch.Tensor:
    tensor = torch.as_tensor(np.ascontiguousarray(values))  # a share of several processes has gaps
    # from page-locked memory: from any other the copy waits until the device has done all it was asked before
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


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
        self,
        noise: SgdNoise,
        epoch: int,
        skip_steps: int = 0,
        num_steps: int | None = None,
        augment: bool = True,
        every: int = 1,
    ) -> Iterator[Batch]:
        """Yield this rank's batches; see TrainLoader."""
        indices_SN = self.order.indices(noise, epoch, skip_steps, num_steps, every)
        on_device = partial(_on_device, device=self.split.labels_N.device)
        # One draw and one copy to the device for the whole epoch.
        draws = self._draws(noise.key("augment", epoch), indices_SN) if augment else ()
        return self._batches(on_device(indices_SN), tuple(on_device(values) for values in draws))

    def _draws(self, key: int, indices_SN: np.ndarray) -> tuple[np.ndarray, ...]:
        augmentation = self.spec.augmentation
        if isinstance(augmentation, CropFlip):
            top, left, flip = crop_flips(key, indices_SN, augmentation.padding)
            return top, left, flip & augmentation.flip
        assert isinstance(augmentation, ZoomFlip)
        boxes = resized_crop_boxes(
            key, indices_SN.reshape(-1), self.spec.image_size, augmentation.scale, augmentation.ratio
        )
        return boxes.reshape(*indices_SN.shape, 4), flips(key, indices_SN) & augmentation.flip

    def _batches(self, indices_SN: torch.Tensor, draws: tuple[torch.Tensor, ...]) -> Iterator[Batch]:
        augmented = self.split.crop if isinstance(self.spec.augmentation, CropFlip) else self.split.zoom
        for step, indices in enumerate(indices_SN):
            images = augmented(indices, *(values[step] for values in draws)) if draws else self.split.plain(indices)
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
