"""ShuffleNet v1 (Zhang et al. 2018) with 3 groups, for small images.

Stages have 240, 480 and 960 channels. The stem is a 3×3 stride-1 convolution without max-pool. As in the paper's
scripts, every convolution has a bias, the first 1×1 convolution is also grouped, and layers use torch's default
initialisation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.models.initialise import kaiming_normal_

_GROUPS = 3
_STEM = 24
_BLOCKS = (4, 8, 4)


class ShuffleUnit(nn.Module):
    """Unit of ShuffleNet (figure 2b, c of the paper).

    It has a grouped 1×1 convolution, a channel shuffle, a depthwise 3×3 and a grouped 1×1 convolution. The first
    convolution reduces to a quarter of the output channels. A unit of stride 2 concatenates its result with the
    average-pooled input. Other units add it to the input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        middle = out_channels // 4
        new_channels = out_channels - in_channels if stride == 2 else out_channels
        self.conv1 = nn.Conv2d(in_channels, middle, 1, groups=_GROUPS)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride=stride, padding=1, groups=middle)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, new_channels, 1, groups=_GROUPS)
        self.bn3 = nn.BatchNorm2d(new_channels)
        self.stride = stride

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x_NCHW)))
        y = self.bn2(self.conv2(F.channel_shuffle(y, _GROUPS)))
        y = self.bn3(self.conv3(y))
        if self.stride == 1:
            return F.relu(y + x_NCHW)
        return F.relu(torch.cat([F.avg_pool2d(x_NCHW, 3, stride=2, padding=1), y], 1))


class ShuffleNet(nn.Module):
    """ShuffleNet v1 for small images. See the module docstring."""

    def __init__(self, num_classes: int, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, _STEM, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(_STEM)
        units: list[nn.Module] = []
        before = _STEM
        for stage, num_units in enumerate(_BLOCKS):
            after = width * 2**stage
            for index in range(num_units):
                units.append(ShuffleUnit(before, after, stride=2 if index == 0 else 1))
                before = after
        self.units = nn.Sequential(*units)
        self.fc = nn.Linear(before, num_classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x_NCHW)))
        return self.fc(self.units(y).mean((2, 3)))


def shufflenet_cifar(
    *, num_classes: int, channels: int, image_size: int, width: int = 240, former: bool = False
) -> nn.Module:
    """Build ShuffleNet for small images.

    Args:
        num_classes: Outputs of the classifier.
        channels: Channels of an image.
        image_size: Not used.
        width: Channels of the first stage, a multiple of 12 (4 · 3 groups) above 24.
        former: Whether to use the initialisation of older runs (`harness.config.redrawn`).

    Raises:
        ValueError: The width does not fit.
    """
    del image_size
    if width % (4 * _GROUPS) or width <= _STEM:
        raise ValueError(f"the width of ShuffleNet must be a multiple of {4 * _GROUPS} above {_STEM}, got {width}")
    model = ShuffleNet(num_classes, channels, width)
    if former:
        kaiming_normal_(model)
    return model
