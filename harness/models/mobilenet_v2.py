"""MobileNetV2 (Sandler et al. 2018): torchvision's for ImageNet, and one for small images.

The small one is that of the field's CIFAR experiments and of the paper's scripts: the stem and the first stage of 24
channels keep the resolution, the block of expansion 1 has its 1×1 expansion too, and where a block of stride 1 changes
the number of channels, its shortcut is a 1×1 convolution with BatchNorm (torchvision has no shortcut there). Its layers
start from torch's default draw, as in those scripts.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from harness.models.initialise import kaiming_normal_
from harness.models.stem import fitted_stem

_STEM = 32
# expansion, channels, blocks, stride of the first: table 2 of the paper but for the stride of the 24-channel stage
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_HEAD = 1280


def mobilenet_v2(*, num_classes: int, channels: int, image_size: int) -> nn.Module:
    """Build torchvision's `mobilenet_v2` without dropout, freshly initialised (method section 5)."""
    import torchvision  # a second to import, and only few networks need it

    del image_size
    model = torchvision.models.mobilenet_v2(weights=None, num_classes=num_classes, dropout=0.0)
    model.features[0][0] = fitted_stem(model.features[0][0], channels, kernel_size=3, stride=2)
    return model


class InvertedResidual(nn.Module):
    """1×1 expansion, depthwise 3×3, linear 1×1 projection; a shortcut if the resolution stays."""

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
    """The network for small images; see the module's docstring."""

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
    """Build MobileNetV2 for small images; `width` is the stem's, and all numbers of channels scale with it.

    `former`: draw its weights as older runs did (`harness.config.redrawn`).
    """
    del image_size
    model = MobileNetV2Cifar(num_classes, channels, width)
    if former:
        kaiming_normal_(model)
    return model
