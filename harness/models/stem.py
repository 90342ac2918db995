"""Adapt the first convolution of torchvision's networks to other images."""

from __future__ import annotations

from torch import nn


def fitted_stem(stem: nn.Conv2d, channels: int, *, kernel_size: int, stride: int) -> nn.Conv2d:
    """Return `stem` if it fits, else a new convolution.

    It fits if input channels, kernel size and stride are as given. A new one is initialised as torchvision initialises
    its own.
    """
    if (stem.in_channels, *stem.kernel_size, *stem.stride) == (channels, *2 * (kernel_size,), *2 * (stride,)):
        return stem
    fitted = nn.Conv2d(channels, stem.out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(fitted.weight, mode="fan_out", nonlinearity="relu")
    return fitted
