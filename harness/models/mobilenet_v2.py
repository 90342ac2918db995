"""MobileNetV2 (Sandler et al. 2018): torchvision's for ImageNet, and a variant for small images.

The variant is common in CIFAR experiments and is used in the paper's scripts. It differs from torchvision's network:
- The stem and the first stage of 24 channels keep the resolution.
- The block of expansion 1 also has a 1×1 expansion.
- A stride-1 block that changes the number of channels also has a shortcut: a 1×1 convolution with BatchNorm.
- Layers use torch's default initialisation.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from harness.models.initialise import kaiming_normal_
from harness.models.sources import library_version
from harness.models.stem import fitted_stem

_STEM = 32
# Expansion, channels, blocks, stride of the first block: table 2 of the paper, except the stride of 24 channels.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_HEAD = 1280


def mobilenet_v2(*, num_classes: int, channels: int, image_size: int) -> nn.Module:
    """Build torchvision's `mobilenet_v2` without dropout, untrained (method section 5)."""
    library_version("torchvision", "mobilenet_v2")
    import torchvision  # imported here because it takes a second and few networks need it

    del image_size
    model = torchvision.models.mobilenet_v2(weights=None, num_classes=num_classes, dropout=0.0)
    model.features[0][0] = fitted_stem(model.features[0][0], channels, kernel_size=3, stride=2)
    return model


class InvertedResidual(nn.Module):
    """1×1 expansion, depthwise 3×3 and linear 1×1 projection.

    Blocks of stride 1 have a shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = expansion * in_channels
        self.conv1 = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.residual = stride == 1
        self.shortcut = nn.Sequential()
        if self.residual and in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x_NCHW)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return y + self.shortcut(x_NCHW) if self.residual else y


class MobileNetV2Cifar(nn.Module):
    """MobileNetV2 with stride 1 in the stem and the 24-channel stage; `width` scales all channels."""

    def __init__(self, num_classes: int, channels: int, width: int) -> None:
        super().__init__()
        scaled = [max(1, round(number * width / _STEM)) for _, number, _, _ in _STAGES]
        head = max(1, round(_HEAD * width / _STEM))
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        before = width
        for (expansion, _, num_blocks, stride), after in zip(_STAGES, scaled, strict=True):
            for index in range(num_blocks):
                blocks.append(InvertedResidual(before, after, expansion, stride if index == 0 else 1))
                before = after
        self.blocks = nn.Sequential(*blocks)
        self.conv2 = nn.Conv2d(before, head, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(head)
        self.fc = nn.Linear(head, num_classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x_NCHW)))
        y = F.relu(self.bn2(self.conv2(self.blocks(y))))
        return self.fc(y.mean((2, 3)))


def mobilenet_v2_cifar(
    *, num_classes: int, channels: int, image_size: int, width: int = _STEM, former: bool = False
) -> nn.Module:
    """Build MobileNetV2 for small images.

    Args:
        num_classes: Outputs of the classifier.
        channels: Channels of an image.
        image_size: Not used.
        width: Channels of the stem. All other channel numbers scale with it.
        former: Whether to use the initialisation of older runs (`harness.config.redrawn`).
    """
    del image_size
    model = MobileNetV2Cifar(num_classes, channels, width)
    if former:
        kaiming_normal_(model)
    return model
