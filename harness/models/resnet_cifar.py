"""ResNets of depth 6n + 2 for small images (He et al. 2016, section 4.2).

A 3×3 stem is followed by three stages of n basic blocks with widths w, 2w and 4w. The second and third stage each halve
the resolution. Shortcuts have no parameters (option A). A global average pool and one linear classifier follow.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from harness.models.initialise import kaiming_normal_


class BasicBlock(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)).

    The shortcut subsamples and pads with zero channels.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x_NCHW)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + padded_shortcut(x_NCHW, self.stride, self.new_channels))


def padded_shortcut(x_NCHW: Tensor, stride: int, new_channels: int) -> Tensor:
    """Subsample x by `stride` and pad it with zero channels (option A).

    Half of the `new_channels` come before x's channels.
    """
    if stride != 1:
        x_NCHW = x_NCHW[:, :, ::stride, ::stride]
    if new_channels:
        before = new_channels // 2
        x_NCHW = F.pad(x_NCHW, (0, 0, 0, 0, before, new_channels - before))
    return x_NCHW


class ResNetCifar(nn.Module):
    """CIFAR ResNet. See the module docstring.

    Any image of at least 1×1 pixels fits, because pooling is global.
    """

    def __init__(self, blocks_per_stage: int, num_classes: int, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(blocks_per_stage, width, width, stride=1)
        self.layer2 = _stage(blocks_per_stage, width, 2 * width, stride=2)
        self.layer3 = _stage(blocks_per_stage, 2 * width, 4 * width, stride=2)
        self.fc = nn.Linear(4 * width, num_classes)
        kaiming_normal_(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x_NCHW)))
        y = self.layer3(self.layer2(self.layer1(y)))
        return self.fc(y.mean((2, 3)))


def _stage(num_blocks: int, in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(num_blocks - 1)))


def blocks_of_depth(depth: int) -> int:
    """Return n, the blocks per stage of a network of depth 6n + 2.

    Raises:
        ValueError: There is no such n ≥ 1.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"the depth of a CIFAR ResNet must be 6n + 2 (8, 14, 20, 32, …), got {depth}")
    return (depth - 2) // 6


def resnet_cifar(depth: int, *, num_classes: int, channels: int, image_size: int, width: int = 16) -> nn.Module:
    """Build ResNet-`depth` with `width` channels in its first stage.

    Raises:
        ValueError: `depth` is not 6n + 2 with n ≥ 1.
    """
    del image_size  # not needed, because pooling is global
    return ResNetCifar(blocks_of_depth(depth), num_classes, channels, width)
