"""Cut image files from photographs, and define two data sets for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from harness.data.spec import DATASETS, CropFlip, RawSource, ResizedCropFlip

SMALL_RGB = replace(
    DATASETS["imagenet"],
    name="small_rgb",
    num_classes=3,
    image_size=32,
    augmentation=CropFlip(padding=4, flip=True),
    raw=RawSource(default="nowhere"),
)
# Like ImageNet, with small images.
BOXES = replace(
    DATASETS["imagenet"],
    name="boxes",
    num_classes=2,
    image_size=64,
    augmentation=ResizedCropFlip(size=64, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=True, test_resize=73),
)


def photo_crops(number: int, height: int, width: int) -> list[np.ndarray]:
    """Cut random crops from scikit-learn's two photographs.

    Args:
        number: Number of crops.
        height: Height of a crop in pixels.
        width: Width of a crop in pixels.

    Returns:
        RGB images of shape (height, width, 3).
    """
    from sklearn.datasets import load_sample_images

    photos = load_sample_images().images
    generator = np.random.default_rng(0)
    crops = []
    for index in range(number):
        photo = photos[index % 2]
        top = generator.integers(photo.shape[0] - height + 1)
        left = generator.integers(photo.shape[1] - width + 1)
        crops.append(photo[top : top + height, left : left + width])
    return crops


def save(pixels: np.ndarray, path: Path, mode: str = "RGB") -> Path:
    """Write an image file and create its directory. Return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def image_folder(root: Path, crops: list[np.ndarray], num_test: int, num_classes: int, suffix: str) -> Path:
    """Write crops as an image folder and return its root.

    Paths have the form `split/class/file`.

    Args:
        root: Directory to fill.
        crops: The images.
        num_test: Number of crops, from the first on, for the validation split.
        num_classes: Number of classes, assigned in turn.
        suffix: Suffix that selects the image format, such as ".png".
    """
    for index, crop in enumerate(crops):
        split = "val" if index < num_test else "train"
        save(crop, root / split / f"class{index % num_classes}" / f"{index:04}{suffix}")
    return root
