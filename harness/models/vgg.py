"""VGG11 with BatchNorm (Simonyan & Zisserman 2015, configuration A).

The head is a single linear layer. Feature layers have the names and shapes of torchvision's `vgg11_bn`. A max-pool is
skipped if the feature map is already one pixel (the fifth pool at 28×28). Images of any size therefore fit.
"""

from __future__ import annotations

from torch import Tensor, nn

from harness.models.initialise import kaiming_normal_

_WIDTH = 64
_POOL = 0
_CONFIGURATION_A = (1, _POOL, 2, _POOL, 4, 4, _POOL, 8, 8, _POOL, 8, 8, _POOL)  # channels in units of width


class Vgg(nn.Module):
    """VGG: convolutions and pools, global average pool, linear classifier."""

    def __init__(self, num_classes: int, channels: int, image_size: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before, size = channels, image_size
        for multiple in _CONFIGURATION_A:
            if multiple == _POOL:
                layers.append(nn.MaxPool2d(2) if size > 1 else nn.Identity())
                size = max(1, size // 2)
                continue
            after = multiple * width
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
            before = after
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(before, num_classes)
        kaiming_normal_(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.fc(self.features(x_NCHW).mean((2, 3)))


def vgg11_bn_cifar(*, num_classes: int, channels: int, image_size: int, width: int = _WIDTH) -> nn.Module:
    """Build VGG11-bn with `width` channels in its first layer."""
    return Vgg(num_classes, channels, image_size, width)
