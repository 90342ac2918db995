"""Test the specifications of the data sets against the paper's scripts."""

from __future__ import annotations

import pytest

from harness.data import DATASETS
from harness.data.spec import CropFlip, ResizedCropFlip, ZoomFlip

CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # equal to torchvision's values
RATIO = (3 / 4, 4 / 3)  # torchvision's default


@pytest.mark.parametrize(
    ("name", "classes", "size", "normalised", "augmentation"),
    [
        ("cifar10", 10, 32, CIFAR, CropFlip(padding=4, flip=True)),
        ("cifar100", 100, 32, CIFAR, CropFlip(padding=4, flip=True)),
        ("tiny_imagenet", 200, 64, IMAGENET, ZoomFlip(scale=(0.5, 1.0), ratio=RATIO, flip=True)),
        (
            *("imagenet", 1000, 224, IMAGENET),
            ResizedCropFlip(size=224, scale=(0.08, 1.0), ratio=RATIO, flip=True, test_resize=256),
        ),
    ],
)
def test_the_papers_data_sets(name, classes, size, normalised, augmentation):
    spec = DATASETS[name]
    assert (spec.num_classes, spec.image_size, spec.channels) == (classes, size, 3)
    assert (spec.mean, spec.std) == normalised
    assert spec.augmentation == augmentation
