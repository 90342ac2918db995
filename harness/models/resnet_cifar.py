"""ResNets of depth 6n + 2 for small images (He et al. 2016, section 4.2).

A 3×3 stem, three stages of n basic blocks at widths w, 2w, 4w, the last two at half the resolution each, parameter-free
shortcuts (option A), global average pool, one linear classifier.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from harness.models.initialise import kaiming_normal_


class BasicBlock(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)); the shortcut subsamples and pads with zero channels."""

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
    """Return x subsampled by `stride`, with `new_channels` channels of zeros, half of them before x's (option A)."""
    if stride != 1:
        x_NCHW = x_NCHW[:, :, ::stride, ::stride]
    if new_channels:
        before = new_channels // 2
        x_NCHW = F.pad(x_NCHW, (0, 0, 0, 0, before, new_channels - before))
    return x_NCHW


class ResNetCifar(nn.Module):
    """The network; see the module's docstring. Any image of at least 1×1 goes, since pooling is global."""

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
    """Return n of depth = 6n + 2, the blocks of each stage; ValueError if there is no such n ≥ 1."""
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"the depth of a CIFAR ResNet must be 6n + 2 (8, 14, 20, 32, …), got {depth}")
    return (depth - 2) // 6


def resnet_cifar(depth: int, *, num_classes: int, channels: int, image_size: int, width: int = 16) -> nn.Module:
    """Build ResNet-`depth` with `width` channels in its first stage; ValueError unless depth = 6n + 2, n ≥ 1."""
    del image_size  # convolutions and a global pool: the same network for any size
    return ResNetCifar(blocks_of_depth(depth), num_classes, channels, width)
