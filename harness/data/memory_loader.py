"""Keep a whole split on the device, and augment it there.

Images are uint8. Augmentation gathers pixels.

Batches equal those of the FFCV loader bit for bit. This loader does not need ffcv. Once the split is loaded, it does
not need the file system.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file

from harness.common.escape import one_line
from harness.common.files import refuse_pipe
from harness.data.augment import crop_flips, enlargement, flips, resized_crop_boxes
from harness.data.loaders import Batch, SplitReader
from harness.data.spec import CropFlip, DataSpec, ZoomFlip


@dataclass(frozen=True)
class ResidentSplit:
    """One split on one device. Images are padded with black for random crops."""

    spec: DataSpec
    padded_NHWC: torch.Tensor
    labels_N: torch.Tensor
    padding: int = 0
    """Black pixels on each side of an image."""

    @classmethod
    def load(cls, spec: DataSpec, path: Path, device: torch.device) -> ResidentSplit:
        """Load a split's safetensors file onto the device.

        Raises:
            ValueError: The file is damaged, or its images or labels are not those of the data set.
        """
        # Check all that gathering pixels relies on.
        try:
            refuse_pipe(path)
            tensors = load_file(path)
            images, labels = tensors["images_NHWC"], tensors["labels"]
        except (SafetensorError, KeyError, OSError) as error:
            raise ValueError(f"{path} cannot be read ({one_line(error):.200}); prepare the data again") from error
        shape = (len(labels), spec.image_size, spec.image_size, spec.channels)
        if images.shape != shape or labels.ndim != 1 or (images.dtype, labels.dtype) != (torch.uint8, torch.int64):
            raise ValueError(
                f"{path} has images {tuple(images.shape)} {images.dtype} and labels {tuple(labels.shape)} "
                f"{labels.dtype}; {spec.name} needs {shape} torch.uint8 and torch.int64; prepare the data again"
            )
        if len(labels) == 0 or int(labels.min()) < 0 or int(labels.max()) >= spec.num_classes:
            raise ValueError(f"{path} has labels outside 0 to {spec.num_classes - 1}; prepare the data again")
        padding = spec.augmentation.padding if isinstance(spec.augmentation, CropFlip) else 0
        padded = F.pad(images, (0, 0, padding, padding, padding, padding))
        return cls(spec, padded.to(device), labels.to(device), padding)

    @property
    def num_samples(self) -> int:
        """Return the number of samples in the split."""
        return len(self.labels_N)

    def batches(self, indices_N: np.ndarray, key: int | None, batch_size: int) -> Iterator[Batch]:
        """Yield these samples in order. See `SplitReader`."""
        device, augmentation = self.labels_N.device, self.spec.augmentation
        # They are copied to the device once for all batches.
        draws = self._draws(key, indices_N)
        indices, *drawn = (_on_device(values, device) for values in (indices_N, *draws))
        augmented = self.crop if isinstance(augmentation, CropFlip) else self.zoom
        inner = slice(self.padding, self.padding + self.spec.image_size)
        for start in range(0, len(indices_N), batch_size):
            rows = slice(start, start + batch_size)
            chosen = indices[rows].clone()  # the caller may keep the batch
            # Images without augmentation are the stored ones, without their black frame.
            draw = [values[rows] for values in drawn]
            images = augmented(chosen, *draw) if draw else self.padded_NHWC[chosen, inner, inner]
            yield Batch(images, self.labels_N[chosen], chosen)

    def one(self, index: int, key: int) -> torch.Tensor:
        """Return the only image of this split, augmented as the sample `index` of a larger one, uint8 (H, W, C)."""
        augmented = self.crop if isinstance(self.spec.augmentation, CropFlip) else self.zoom
        draws = (torch.from_numpy(values) for values in self._draws(key, np.array([index])))
        return augmented(torch.zeros(1, dtype=torch.int64), *draws)[0]

    def _draws(self, key: int | None, indices_N: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return the arguments of `crop` or `zoom` for these samples, (N, …) each. Without a key there are none."""
        augmentation = self.spec.augmentation
        if key is None:
            return ()
        if isinstance(augmentation, CropFlip):
            top, left, flip = crop_flips(key, indices_N, augmentation.padding)
            return top, left, flip & augmentation.flip
        assert isinstance(augmentation, ZoomFlip)
        size, scale, ratio = self.spec.image_size, augmentation.scale, augmentation.ratio
        boxes_N4 = resized_crop_boxes(key, indices_N, size, scale, ratio)
        return boxes_N4, flips(key, indices_N) & augmentation.flip

    def crop(self, indices: torch.Tensor, top: torch.Tensor, left: torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
        """Return random crops of the samples, uint8 (N, H, W, C).

        Args:
            indices: Positions in the split, (N,).
            top: Top row of the crop in the padded image, (N,).
            left: Left column of the crop in the padded image, (N,).
            flip: Whether to flip left to right, bool (N,).
        """
        _, padded_height, padded_width, channels = self.padded_NHWC.shape
        height = width = self.spec.image_size
        forwards, backwards = _places(height, top.device)
        rows = top[:, None] + forwards
        columns = left[:, None] + torch.where(flip[:, None], backwards, forwards)
        pixels = (indices[:, None] * padded_height + rows)[:, :, None] * padded_width + columns[:, None, :]
        # Gather whole pixels at once: faster than advanced indexing on CPU, and one kernel on CUDA.
        chosen = self.padded_NHWC.view(-1, channels).index_select(0, pixels.view(-1))
        return chosen.view(len(indices), height, width, channels)

    def zoom(self, indices: torch.Tensor, boxes_N4: torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
        """Return enlarged boxes of the samples, uint8 (N, H, W, C).

        Args:
            indices: Positions in the split, (N,).
            boxes_N4: Top, left, height and width of each box, (N, 4).
            flip: Whether to flip left to right, bool (N,).
        """
        # Look up the four source pixels of each target pixel, and their weights.
        _, size, _, channels = self.padded_NHWC.shape
        low, weight = _tables(size, flip.device)
        top, left, height, width = boxes_N4.T
        forwards, backwards = _places(size, flip.device)
        columns = torch.where(flip[:, None], backwards, forwards)
        ups, lower = low[height], weight[height].int()
        lefts, nearer = low[width[:, None], columns], weight[width[:, None], columns].int()
        downs, rights = (torch.minimum(a + 1, b[:, None] - 1) for a, b in ((ups, height), (lefts, width)))

        def pixels(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
            places = (indices[:, None] * size + top[:, None] + rows)[:, :, None] * size
            places = places + (left[:, None] + columns)[:, None, :]
            chosen = self.padded_NHWC.view(-1, channels).index_select(0, places.view(-1))
            return chosen.view(len(indices), size, size, channels).int()

        # Blend them in integers, and round halves up.
        one, nearer, lower = 2 * size, nearer[:, None, :, None], lower[:, :, None, None]
        above = pixels(ups, lefts) * (one - nearer) + pixels(ups, rights) * nearer
        below = pixels(downs, lefts) * (one - nearer) + pixels(downs, rights) * nearer
        return ((above * (one - lower) + below * lower + one * one // 2) // (one * one)).to(torch.uint8)


@cache
def _places(size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return 0 … size − 1, forwards and backwards."""
    with torch.inference_mode(False):  # as in `_tables`
        forwards = torch.arange(size, device=device)
        return forwards, forwards.flip(0)


@cache
def _tables(size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    low, weight = enlargement(size)
    # The tables are cached for training, so they must not be inference tensors even if an evaluation comes first.
    with torch.inference_mode(False):
        return _on_device(low, device), _on_device(weight, device)


def _on_device(values: np.ndarray, device: torch.device) -> torch.Tensor:
    tensor = torch.as_tensor(np.ascontiguousarray(values))  # a rank's share may not be contiguous
    # Copy from pinned memory. From pageable memory the copy would wait for all work queued on the device.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def memory_readers(spec: DataSpec, paths: dict[str, Path]) -> Callable[..., SplitReader]:
    """Return a function of (split, num_workers, device) that opens a split.

    Each split is loaded once per device.
    """
    if not spec.fixed_size:
        raise ValueError(f"the memory loader needs images of one size; use the ffcv loader for {spec.name}")
    resident = cache(lambda split, device: ResidentSplit.load(spec, paths[split], device))
    return lambda split, num_workers, device: resident(split, torch.device(device))
