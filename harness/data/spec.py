"""The data sets: what a network must know of each, how it is augmented, and where its raw images come from.

Adding a data set is one entry of `DATASETS` (and a reader in readers.py if its raw format is new).
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.config import known


@dataclass(frozen=True)
class CropFlip:
    """Pad with black on all sides, crop back to the image size at random, flip left to right half of the time."""

    padding: int
    """Pixels on each side."""
    flip: bool


@dataclass(frozen=True)
class ResizedCropFlip:
    """Crop a box of random area and shape, resize it to size × size, flip left to right half of the time.

    Without augmentation: the centre square of side size/test_resize of the shorter side, resized to size × size (the
    region that Resize(test_resize) + CenterCrop(size) sees).
    """

    size: int
    """Pixels of the network's input."""
    scale: tuple[float, float]
    """Share of the image's area, least and most."""
    ratio: tuple[float, float]
    """Width over height, least and most; drawn uniformly on the logarithmic scale."""
    flip: bool
    test_resize: int
    """Pixels of the shorter side of which the test crop takes the centre."""


@dataclass(frozen=True)
class RawSource:
    """Where the raw images come from when `tools/prepare_data.py` is not told otherwise."""

    default: str
    """`scikit-learn`, a directory, or a data set's name on the Hugging Face hub."""
    image_column: str = "image"
    label_column: str = "label"
    test_splits: tuple[str, ...] = ("test", "validation", "valid", "val")
    """Names under which the evaluation split goes; the first that exists is taken."""


@dataclass(frozen=True)
class DataSpec:
    """One data set."""

    name: str
    num_classes: int
    channels: int
    """1 or 3. The .beton file always holds three; gray images are read back as one."""
    image_size: int
    """Height and width of the network's input, pixels."""
    mean: tuple[float, ...]
    """Per channel, of pixels scaled to [0, 1]."""
    std: tuple[float, ...]
    augmentation: CropFlip | ResizedCropFlip
    raw: RawSource

    @property
    def fixed_size(self) -> bool:
        """Whether every raw image already has the network's size (then it is stored raw, and fits in memory)."""
        return isinstance(self.augmentation, CropFlip)


DATASETS: dict[str, DataSpec] = {
    spec.name: spec
    for spec in (
        DataSpec(
            name="digits",
            num_classes=10,
            channels=1,
            image_size=8,
            mean=(0.3053,),
            std=(0.3762,),
            augmentation=CropFlip(padding=1, flip=False),
            raw=RawSource(default="scikit-learn"),
        ),
        DataSpec(
            name="fashion_mnist",
            num_classes=10,
            channels=1,
            image_size=28,
            mean=(0.2860,),
            std=(0.3530,),
            augmentation=CropFlip(padding=2, flip=True),
            raw=RawSource(default="/usr/share/datasets/fashion-mnist"),
        ),
        DataSpec(
            name="imagenet",
            num_classes=1000,
            channels=3,
            image_size=224,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            augmentation=ResizedCropFlip(size=224, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=True, test_resize=256),
            # ImageNet's own "test" has no labels.
            raw=RawSource(default="ILSVRC/imagenet-1k", test_splits=("validation", "val", "valid")),
        ),
    )
}


def data_spec(name: str) -> DataSpec:
    """Return the data set called `name`; ValueError with the known names and the nearest otherwise."""
    return DATASETS[known("data set", name, list(DATASETS))]
