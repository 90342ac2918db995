"""Provide small prepared data sets of real images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Allow two loader threads on a machine with one core. numba reads this only once.
os.environ.setdefault("NUMBA_NUM_THREADS", "2")

from harness.data.own import OwnOptions
from harness.data.prepare import ImageOptions, prepare
from harness.data.spec import DATASETS, DataSpec
from tests.data.archive_files import tiny_imagenet_files, tiny_imagenet_zip
from tests.data.photo_files import BOXES, SMALL_RGB, image_folder, photo_crops


@pytest.fixture(scope="session", autouse=True)
def known_specs() -> Iterator[None]:
    """Add the test data sets to the table DATASETS."""
    DATASETS.update({spec.name: spec for spec in (SMALL_RGB, BOXES)})
    yield
    del DATASETS[SMALL_RGB.name], DATASETS[BOXES.name]


@pytest.fixture(scope="session")
def digits_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare scikit-learn's digits."""
    out = tmp_path_factory.mktemp("digits")
    prepare("digits", out)
    return out


@pytest.fixture(scope="session")
def rgb_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare 70 training and 11 test photographs of 32×32 pixels."""
    root = tmp_path_factory.mktemp("rgb")
    prepare("small_rgb", root / "data", str(image_folder(root / "raw", photo_crops(81, 32, 32), 11, 3, ".png")))
    return root / "data"


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare a Tiny-ImageNet of 70 training and 11 test photographs from its zip."""
    root, crops = tmp_path_factory.mktemp("tiny"), photo_crops(81, 64, 64)
    archive = tiny_imagenet_zip(root / "tiny-imagenet-200.zip", tiny_imagenet_files(crops[:70], crops[70:]))
    prepare("tiny_imagenet", root / "data", str(archive), allow_missing_classes=True)
    return root / "data"


USERS_FILE = """
import random

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2


def build(split):
    return ImageFolder(f"{ROOT}/{'train' if split == 'train' else 'val'}")


class Noise:
    def __call__(self, image):
        low = random.randrange(9)
        return (image.int() + torch.from_numpy(np.random.randint(low, 9, image.shape))).clamp(0, 255).to(torch.uint8)


def transforms(split, size):
    if split == "test":
        return v2.Compose([v2.Resize(size), v2.CenterCrop(size)])
    crop = v2.RandomResizedCrop(size, scale=(0.3, 1))
    return v2.Compose([v2.ToImage(), crop, v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4, 0.4), Noise()])
"""
"""Python file of a data set: an image folder, and transforms that draw from torch, NumPy and random."""


@pytest.fixture(scope="session")
def file_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare 70 training and 11 test photographs of several sizes, by a Python file."""
    root = tmp_path_factory.mktemp("by_file")
    crops = [photo_crops(index + 1, 40, 40 + index % 7)[-1] for index in range(81)]
    file = root / "mine.py"
    file.write_text(f"ROOT = {str(image_folder(root / 'raw', crops, 11, 3, '.png'))!r}\n{USERS_FILE}")
    prepare("by_file", root / "data", f"{file}:build", own=OwnOptions(size=32))
    return root / "data"


@pytest.fixture(scope="session")
def boxes_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an image folder with 40 photographs of several sizes, as lossless PNG."""
    sizes = [(90, 120), (120, 90), (100, 40), (40, 100), (64, 64)]
    crops = [photo_crops(index + 1, *sizes[index % len(sizes)])[-1] for index in range(40)]
    return image_folder(tmp_path_factory.mktemp("boxes_raw"), crops, 8, 2, ".png")


@pytest.fixture(scope="session")
def boxes_directory(tmp_path_factory: pytest.TempPathFactory, boxes_raw: Path) -> Path:
    """Prepare the photographs of `boxes_raw` with uncompressed pixels."""
    out = tmp_path_factory.mktemp("boxes")
    prepare("boxes", out, str(boxes_raw), ImageOptions(write_mode="raw"))
    return out


@pytest.fixture
def digits_spec() -> DataSpec:
    """Return the specification of the digits."""
    return DATASETS["digits"]
