"""torchvision's ResNet-50, with its ImageNet stem or a stem for small images."""

from __future__ import annotations

from torch import nn

from harness.models.initialise import torch_default_
from harness.models.sources import library_version
from harness.models.stem import fitted_stem


def resnet50(*, num_classes: int, channels: int, image_size: int) -> nn.Module:
    """Build torchvision's `resnet50`, untrained: 7×7 stride-2 stem with max-pool."""
    del image_size
    return _torchvision_resnet50(num_classes, channels, kernel_size=7, stride=2)


def resnet50_cifar(*, num_classes: int, channels: int, image_size: int, former: bool = False) -> nn.Module:
    """Build ResNet-50 with a 3×3 stride-1 stem and no max-pool (method section 5).

    It is for CIFAR-100 and Tiny-ImageNet. The stem uses torch's default initialisation, as in the paper's scripts. All
    other layers use torchvision's.

    Args:
        num_classes: Outputs of the classifier.
        channels: Channels of an image.
        image_size: Not used.
        former: Whether to draw the stem as older runs did (`harness.config.redrawn`).
    """
    del image_size
    model = _torchvision_resnet50(num_classes, channels, kernel_size=3, stride=1)
    if not former:
        torch_default_(model.get_submodule("conv1"))
    model.maxpool = nn.Identity()
    return model


def _torchvision_resnet50(num_classes: int, channels: int, kernel_size: int, stride: int) -> nn.Module:
    library_version("torchvision", "resnet50")
    import torchvision  # imported here because it takes a second and few networks need it

    model = torchvision.models.resnet50(weights=None, num_classes=num_classes)
    model.conv1 = fitted_stem(model.conv1, channels, kernel_size=kernel_size, stride=stride)
    return model
