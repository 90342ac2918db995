"""ResNets without normalisation layers, initialised by SkipInit.

See De & Smith 2020, "Batch normalization biases residual blocks towards the identity function in deep networks". Each
residual branch is multiplied by one learnable scalar, initially 0. Every convolution has a bias. The network has no ψ,
so AWS and LRR give identical bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.models.initialise import kaiming_normal_
from harness.models.resnet_cifar import blocks_of_depth, padded_shortcut


class ScaledBlock(nn.Module):
    """relu(scale · conv(relu(conv(x))) + shortcut(x)), with a learnable scalar `scale`."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.scale = nn.Parameter(torch.zeros(()))
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y = self.scale * self.conv2(F.relu(self.conv1(x_NCHW)))
        return F.relu(y + padded_shortcut(x_NCHW, self.stride, self.new_channels))


class ResNetSkipInit(nn.Module):
    """CIFAR ResNet of `resnet_cifar`, built from ScaledBlocks."""

    def __init__(self, blocks_per_stage: int, num_classes: int, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        blocks: list[nn.Module] = []
        before = width
        for stage in range(3):
            for index in range(blocks_per_stage):
                blocks.append(ScaledBlock(before, width * 2**stage, stride=2 if stage > 0 and index == 0 else 1))
                before = width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(before, num_classes)
        kaiming_normal_(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y = self.blocks(F.relu(self.conv1(x_NCHW)))
        return self.fc(y.mean((2, 3)))


def resnet_skipinit(depth: int, *, num_classes: int, channels: int, image_size: int, width: int = 16) -> nn.Module:
    """Build ResNet-`depth` without normalisation layers.

    Raises:
        ValueError: `depth` is not 6n + 2 with n ≥ 1.
    """
    del image_size
    return ResNetSkipInit(blocks_of_depth(depth), num_classes, channels, width)
