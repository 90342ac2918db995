"""EfficientNet-B0 (Tan & Le 2019) for small images: torchvision's blocks behind a stem of stride 1.

As in the paper's scripts, the classifier follows the last stage of 320 channels directly. Dropout and drop-connect
(torchvision: stochastic depth) draw from torch's generator, which the training loop seeds for every step.
"""

from __future__ import annotations

from torch import nn

from harness.models.stem import fitted_stem

_STEM = 32
# expansion, kernel, stride, channels in and out, blocks: table 1 of the paper
_STAGES = (
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)
_DROPOUT = 0.2
_DROP_CONNECT = 0.2
"""Of the last block; it grows linearly from 0 at the first."""


def efficientnet_b0_cifar(*, num_classes: int, channels: int, image_size: int, width: int = _STEM) -> nn.Module:
    """Build EfficientNet-B0 with a stride-1 stem; `width` scales all channels as B1 to B7 do (multiples of 8)."""
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig  # a second to import

    del image_size
    stages = [MBConvConfig(*stage, width_mult=width / _STEM) for stage in _STAGES]
    model = EfficientNet(stages, dropout=_DROPOUT, stochastic_depth_prob=_DROP_CONNECT, num_classes=num_classes)
    model.features[0][0] = fitted_stem(model.features[0][0], channels, kernel_size=3, stride=1)
    del model.features[-1]  # the 1×1 convolution to 1280 channels
    model.classifier[1] = nn.Linear(stages[-1].out_channels, num_classes)
    return model
