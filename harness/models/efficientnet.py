"""EfficientNet-B0 (Tan & Le 2019) for small images.

It has torchvision's blocks behind a stride-1 stem. As in the paper's scripts, the classifier directly follows the last
stage of 320 channels, and layers use torch's default initialisation. The network has no drop-connect: the scripts set a
rate of 0.2, but never advance the block counter that scales it. Dropout and drop-connect (torchvision: stochastic
depth) draw from torch's generator, which the training loop seeds at every step.
"""

from __future__ import annotations

from torch import nn

from harness.models.initialise import torch_default_
from harness.models.sources import library_version
from harness.models.stem import fitted_stem

_STEM = 32
# Expansion, kernel, stride, channels in and out, blocks: table 1 of the paper.
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
DROP_CONNECT = 0.2
"""Rate of the variant with drop-connect (Tan & Le). It grows linearly from 0 at the first block towards 0.2 after the
last."""


def efficientnet_b0_cifar(
    *,
    num_classes: int,
    channels: int,
    image_size: int,
    width: int = _STEM,
    drop_connect: float = 0.0,
    former: bool = False,
) -> nn.Module:
    """Build EfficientNet-B0 with a stride-1 stem.

    Args:
        num_classes: Outputs of the classifier.
        channels: Channels of an image.
        image_size: Not used.
        width: Channels of the stem. All other channel numbers scale with it, as in B1 to B7 (multiples of 8).
        drop_connect: Rate of drop-connect after the last block.
        former: Whether to use the initialisation of older runs (`harness.config.redrawn`).
    """
    library_version("torchvision", "efficientnet_b0_cifar")
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig  # imported here because it takes a second

    del image_size
    # Build torchvision's network, then change stem, last stage, classifier and initialisation.
    stages = [MBConvConfig(*stage, width_mult=width / _STEM) for stage in _STAGES]
    model = EfficientNet(stages, dropout=_DROPOUT, stochastic_depth_prob=drop_connect, num_classes=num_classes)
    model.features[0][0] = fitted_stem(model.features[0][0], channels, kernel_size=3, stride=1)
    del model.features[-1]  # the 1×1 convolution to 1280 channels
    model.classifier[1] = nn.Linear(stages[-1].out_channels, num_classes)
    if not former:
        torch_default_(model)
    return model
