"""Specifications of all data sets: input size, augmentation, source of images.

Users prepare data sets of their own with `tickets prepare --name` (see own.py). To build one in, add an entry to
`DATASETS`, and a reader in readers/ if its raw format is new.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.config import known


@dataclass(frozen=True)
class CropFlip:
    """Pad with black, crop randomly to the original size, and flip.

    Half of the images are flipped left to right.
    """

    padding: int
    """Black pixels on each side."""
    flip: bool


@dataclass(frozen=True)
class ResizedCropFlip:
    """Resize a random box to size × size, and flip.

    The box has a random area and aspect ratio. Half of the images are flipped left to right. Without augmentation, the
    box is the centre square whose side is size/test_resize of the shorter side. Resize(test_resize) followed by
    CenterCrop(size) shows the same region.
    """

    size: int
    """Height and width of the network's input, in pixels."""
    scale: tuple[float, float]
    """Smallest and largest share of the image's area."""
    ratio: tuple[float, float]
    """Smallest and largest width / height, drawn uniformly on the logarithmic scale."""
    flip: bool
    test_resize: int
    """Shorter side, in pixels, from which the test crop takes the centre."""


@dataclass(frozen=True)
class ZoomFlip:
    """Enlarge a random box to the image size, and flip.

    The box has a random area and aspect ratio. Images already have the network's input size. Half of them are flipped
    left to right. The enlargement is bilinear, in integers (see augment.py). Without augmentation, the image does not
    change.
    """

    scale: tuple[float, float]
    """Smallest and largest share of the image's area."""
    ratio: tuple[float, float]
    """Smallest and largest width / height, drawn uniformly on the logarithmic scale."""
    flip: bool


@dataclass(frozen=True)
class FileTransforms:
    """The function `transforms` of a user's file (see user_file.py).

    Both fields are in the key of every run, because they determine its images.
    """

    sha256: str
    """SHA-256 of the file."""
    torchvision: str
    """Version of torchvision that runs the transforms."""


Augmentation = CropFlip | ResizedCropFlip | ZoomFlip | FileTransforms


@dataclass(frozen=True)
class RawSource:
    """Default source of the raw images, and their treatment by `tickets prepare`."""

    default: str
    """`scikit-learn`, a directory, or a data set's name on the Hugging Face hub."""
    image_column: str = "image"
    label_column: str = "label"
    test_splits: tuple[str, ...] = ("test", "validation", "valid", "val")
    """Possible names of the evaluation split. The first that exists is used."""
    padding: int = 0
    """Black pixels added on each side of every image during preparation."""
    shrink: int = 1
    """Preparation replaces each block of shrink × shrink pixels by its mean, after padding."""
    num_train: int | None = None
    """Number of training images, chosen by key. Default: all."""
    published: tuple[int, int] | None = None
    """Images in the training and the test split of the published data set. None: unknown."""
    class_names: tuple[str, ...] = ()
    """Published names of the classes by label. Empty: unknown. Only for checks and messages."""
    own: bool = False
    """The data set is a user's own: images of any size, and classes as the source has them."""


@dataclass(frozen=True)
class DataSpec:
    """Specification of one data set."""

    name: str
    num_classes: int
    channels: int
    """1 or 3. The .beton file always stores three. Gray images are read back as one channel."""
    image_size: int
    """Height and width of the network's input, in pixels."""
    mean: tuple[float, ...]
    """Mean per channel, for pixels scaled to [0, 1]."""
    std: tuple[float, ...]
    """Standard deviation per channel, for pixels scaled to [0, 1]."""
    augmentation: Augmentation
    raw: RawSource

    @property
    def fixed_size(self) -> bool:
        """Return whether every prepared image has the network's input size.

        Such images are stored uncompressed and fit in memory.
        """
        return isinstance(self.augmentation, CropFlip | ZoomFlip)


_FASHION_MNIST = "/usr/share/datasets/fashion-mnist"  # directory of Debian's package dataset-fashion-mnist
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # as in the paper's scripts

_FASHION_MNIST_COUNTS, _CIFAR_COUNTS = (60_000, 10_000), (50_000, 10_000)
_CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100_NAMES = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
    "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
    "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster "
    "man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck "
    "pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk "
    "skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger "
    "tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
_CIFAR100_CLASSES = tuple(_CIFAR100_NAMES.split())


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
            raw=RawSource(default="scikit-learn", published=(1_297, 500)),
        ),
        DataSpec(
            name="fashion_mnist",
            num_classes=10,
            channels=1,
            image_size=28,
            mean=(0.2860,),
            std=(0.3530,),
            augmentation=CropFlip(padding=2, flip=True),
            raw=RawSource(default=_FASHION_MNIST, published=_FASHION_MNIST_COUNTS),
        ),
        DataSpec(
            name="fashion_mnist_32",  # for networks that expect CIFAR's 32×32
            num_classes=10,
            channels=1,
            image_size=32,
            mean=(0.2190,),
            std=(0.3318,),
            augmentation=CropFlip(padding=2, flip=True),
            raw=RawSource(default=_FASHION_MNIST, published=_FASHION_MNIST_COUNTS, padding=2),
        ),
        DataSpec(
            name="fashion_mnist_small",  # for CPU studies: half the size, 8,000 of 60,000 training images
            num_classes=10,
            channels=1,
            image_size=14,
            mean=(0.2847,),
            std=(0.3295,),
            augmentation=CropFlip(padding=1, flip=True),
            raw=RawSource(default=_FASHION_MNIST, published=_FASHION_MNIST_COUNTS, shrink=2, num_train=8_000),
        ),
        DataSpec(
            name="cifar10",
            num_classes=10,
            channels=3,
            image_size=32,
            mean=_CIFAR_MEAN,
            std=_CIFAR_STD,
            augmentation=CropFlip(padding=4, flip=True),
            raw=RawSource(
                default="uoft-cs/cifar10", image_column="img", published=_CIFAR_COUNTS, class_names=_CIFAR10_CLASSES
            ),
        ),
        DataSpec(
            name="cifar100",
            num_classes=100,
            channels=3,
            image_size=32,
            mean=_CIFAR_MEAN,
            std=_CIFAR_STD,
            augmentation=CropFlip(padding=4, flip=True),
            raw=RawSource(
                default="uoft-cs/cifar100",
                image_column="img",
                label_column="fine_label",
                published=_CIFAR_COUNTS,
                class_names=_CIFAR100_CLASSES,
            ),
        ),
        DataSpec(
            name="tiny_imagenet",
            num_classes=200,
            channels=3,
            image_size=64,
            mean=_IMAGENET_MEAN,
            std=_IMAGENET_STD,
            augmentation=ZoomFlip(scale=(0.5, 1.0), ratio=(3 / 4, 4 / 3), flip=True),
            # Its original "test" split has no labels.
            raw=RawSource(
                default="zh-plus/tiny-imagenet", test_splits=("valid", "val", "validation"), published=(100_000, 10_000)
            ),
        ),
        DataSpec(
            name="imagenet",
            num_classes=1000,
            channels=3,
            image_size=224,
            mean=_IMAGENET_MEAN,
            std=_IMAGENET_STD,
            augmentation=ResizedCropFlip(size=224, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=True, test_resize=256),
            # Its original "test" split has no labels.
            raw=RawSource(
                default="ILSVRC/imagenet-1k", test_splits=("validation", "val", "valid"), published=(1_281_167, 50_000)
            ),
        ),
    )
}


def data_spec(name: str) -> DataSpec:
    """Return the specification of a data set.

    Raises:
        ValueError: The name is unknown. The message lists the valid names and suggests the closest one.
    """
    return DATASETS[known("data set", name, list(DATASETS))]
