"""The data sets: sizes that a network needs, augmentation, and the source of the raw images.

Adding a data set is one entry of `DATASETS` (and a reader in readers/ if its raw format is new).
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
class ZoomFlip:
    """Crop a box of random area and shape out of an image of the network's size, enlarge it to that size, flip.

    The enlargement is bilinear, in whole numbers (see augment.py). Without augmentation the image stays as it is.
    """

    scale: tuple[float, float]
    """Share of the image's area, least and most."""
    ratio: tuple[float, float]
    """Width over height, least and most; drawn uniformly on the logarithmic scale."""
    flip: bool


Augmentation = CropFlip | ResizedCropFlip | ZoomFlip


@dataclass(frozen=True)
class RawSource:
    """Where the raw images come from when `tools/prepare_data.py` is not told otherwise."""

    default: str
    """`scikit-learn`, a directory, or a data set's name on the Hugging Face hub."""
    image_column: str = "image"
    label_column: str = "label"
    test_splits: tuple[str, ...] = ("test", "validation", "valid", "val")
    """Names under which the evaluation split goes; the first that exists is taken."""
    padding: int = 0
    """Black pixels put on each side of every raw image when it is prepared."""
    shrink: int = 1
    """Each block of shrink × shrink pixels becomes its mean (after padding) when the image is prepared."""
    num_train: int | None = None
    """Only so many training images, chosen by key; all if not given."""


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
    augmentation: Augmentation
    raw: RawSource

    @property
    def fixed_size(self) -> bool:
        """Whether every raw image already has the network's size (then it is stored raw, and fits in memory)."""
        return isinstance(self.augmentation, CropFlip | ZoomFlip)


_FASHION_MNIST = "/usr/share/datasets/fashion-mnist"  # where Debian's package puts it
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # as in the paper's scripts


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
            raw=RawSource(default=_FASHION_MNIST),
        ),
        DataSpec(
            name="fashion_mnist_32",  # for networks made for CIFAR's 32×32
            num_classes=10,
            channels=1,
            image_size=32,
            mean=(0.2190,),
            std=(0.3318,),
            augmentation=CropFlip(padding=2, flip=True),
            raw=RawSource(default=_FASHION_MNIST, padding=2),
        ),
        DataSpec(
            name="fashion_mnist_small",  # for studies on a CPU: half the size, 8,000 of 60,000 training images
            num_classes=10,
            channels=1,
            image_size=14,
            mean=(0.2847,),
            std=(0.3295,),
            augmentation=CropFlip(padding=1, flip=True),
            raw=RawSource(default=_FASHION_MNIST, shrink=2, num_train=8_000),
        ),
        DataSpec(
            name="cifar10",
            num_classes=10,
            channels=3,
            image_size=32,
            mean=_CIFAR_MEAN,
            std=_CIFAR_STD,
            augmentation=CropFlip(padding=4, flip=True),
            raw=RawSource(default="uoft-cs/cifar10", image_column="img"),
        ),
        DataSpec(
            name="cifar100",
            num_classes=100,
            channels=3,
            image_size=32,
            mean=_CIFAR_MEAN,
            std=_CIFAR_STD,
            augmentation=CropFlip(padding=4, flip=True),
            raw=RawSource(default="uoft-cs/cifar100", image_column="img", label_column="fine_label"),
        ),
        DataSpec(
            name="tiny_imagenet",
            num_classes=200,
            channels=3,
            image_size=64,
            mean=_IMAGENET_MEAN,
            std=_IMAGENET_STD,
            augmentation=ZoomFlip(scale=(0.5, 1.0), ratio=(3 / 4, 4 / 3), flip=True),
            # its own "test" has no labels
            raw=RawSource(default="zh-plus/tiny-imagenet", test_splits=("valid", "val", "validation")),
        ),
        DataSpec(
            name="imagenet",
            num_classes=1000,
            channels=3,
            image_size=224,
            mean=_IMAGENET_MEAN,
            std=_IMAGENET_STD,
            augmentation=ResizedCropFlip(size=224, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=True, test_resize=256),
            # ImageNet's own "test" has no labels.
            raw=RawSource(default="ILSVRC/imagenet-1k", test_splits=("validation", "val", "valid")),
        ),
    )
}


def data_spec(name: str) -> DataSpec:
    """Return the data set called `name`; ValueError with the known names and the nearest otherwise."""
    return DATASETS[known("data set", name, list(DATASETS))]
