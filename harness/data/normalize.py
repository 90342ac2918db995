"""From stored pixels to the network's input: the one place that all loaders share."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from harness.data.spec import DataSpec

if TYPE_CHECKING:
    import torch


def normalize(images_NHWC: torch.Tensor, spec: DataSpec, channels_last: bool) -> torch.Tensor:
    """Return (pixels/255 − mean) / std as float32 NCHW on the images' device.

    Takes uint8 (N, H, W, C) with C = spec.channels; raises ValueError for anything else. The memory format is
    channels_last if asked, contiguous otherwise.
    """
    import torch  # here, because preparing data and reading specs do without it

    if images_NHWC.dtype != torch.uint8 or images_NHWC.ndim != 4 or images_NHWC.shape[3] != spec.channels:
        raise ValueError(
            f"{spec.name} images must be uint8 (N, H, W, {spec.channels}); "
            f"got {images_NHWC.dtype} {tuple(images_NHWC.shape)}"
        )
    format_ = torch.channels_last if channels_last else torch.contiguous_format
    images_NCHW = images_NHWC.permute(0, 3, 1, 2).to(torch.float32, memory_format=format_)
    mean_C11, scale_C11 = _constants(spec.mean, spec.std, images_NHWC.device)
    return images_NCHW.sub_(mean_C11).mul_(scale_C11)


@cache  # once per device: a tensor from a list is a copy that the device is waited for
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return 255·mean and 1/(255·std), float32 (C, 1, 1) each."""
    import torch

    # not as tensors of inference mode, in which an evaluation may ask first: training needs them too
    with torch.inference_mode(False):
        mean_C11 = torch.tensor([255 * m for m in mean], dtype=torch.float32, device=device)[:, None, None]
        scale_C11 = torch.tensor([1 / (255 * s) for s in std], dtype=torch.float32, device=device)[:, None, None]
    return mean_C11, scale_C11
