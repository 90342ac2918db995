"""Data sets of the user's own: their options, and `spec.json`, which takes the place of an entry in DATASETS.

`tickets prepare --name NAME` writes the file beside the manifests. Its digest is in both manifests, and its
content in the content digest of both splits.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from harness.common.escape import for_terminal, one_line
from harness.common.files import read_bounded
from harness.common.program import command
from harness.config import known
from harness.data.manifest import SPLITS, Manifest
from harness.data.spec import (
    DATASETS,
    Augmentation,
    CropFlip,
    DataSpec,
    FileTransforms,
    RawSource,
    ResizedCropFlip,
    ZoomFlip,
)

SPEC_FILE = "spec.json"
SOURCE_FILE = "source.py"
"""Copy of the user's file that makes the data set, if one does."""
FORMAT = "harness.spec/1"
AugmentationName = Literal["crop-flip", "zoom-flip", "resized-crop", "none"]

_MOST_BYTES = 1 << 24
"""Larger files are no specifications. Ten thousand class names of a kilobyte each fit."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_OPTIONS_OF: dict[str, tuple[str, ...]] = {
    "crop-flip": ("padding",),
    "zoom-flip": ("crop_scale", "crop_ratio"),
    "resized-crop": ("crop_scale", "crop_ratio", "test_resize"),
    "none": (),
}


@dataclass(frozen=True)
class OwnOptions:
    """Size, channels, augmentation and test split of a data set of the user's own."""

    size: int | None = None
    """Height and width of the network's input in pixels, for a data set of your own. Its images may have any size."""
    channels: Literal[1, 3] = 3
    """Channels of the images. 1 is for gray images, and most networks of other libraries need 3."""
    augmentation: AugmentationName = "crop-flip"
    """crop-flip: pad with black, crop, flip. zoom-flip: enlarge a random box, flip. resized-crop: ImageNet's boxes, cut
    from the whole image; stores the images larger, and needs the ffcv loader. none: no augmentation."""
    padding: int | None = None
    """crop-flip: black pixels on each side. Default: an eighth of the size."""
    flip: bool = True
    """Flip half of the training images left to right. Use --no-flip where left and right matter."""
    crop_scale: tuple[float, float] | None = None
    """Smallest and largest share of the area of a box. Default: 0.08 1 for resized-crop, 0.5 1 for zoom-flip."""
    crop_ratio: tuple[float, float] | None = None
    """Smallest and largest width / height of a box. Default: 0.75 1.3333."""
    test_resize: int | None = None
    """resized-crop: shorter side in pixels from which the test crop takes the centre. Default: 8/7 of the size."""
    test_split: float | None = None
    """Share of the images in the test split, if the source has none, 0..1. The split is stratified, and images with
    equal bytes stay together. Default: 0.1."""
    split_seed: int = 0
    """Seed of the choice of test images by --test-split."""

    @classmethod
    def of(cls, recorded: Any) -> OwnOptions:
        """Return the options that `recorded` gave."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in recorded.items()
        }
        return cls(**values)

    @property
    def is_given(self) -> bool:
        """Return whether any of these options was given."""
        return self != OwnOptions()

    @property
    def has_augmentation(self) -> bool:
        """Return whether an option of the augmentation was given."""
        usual = OwnOptions()
        names = ("augmentation", "padding", "flip", "crop_scale", "crop_ratio", "test_resize")
        return any(getattr(self, name) != getattr(usual, name) for name in names)

    @property
    def recorded(self) -> dict[str, Any]:
        """Return the options as JSON has them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def __post_init__(self) -> None:
        # Check the numbers.
        low, high = self.crop_scale or (1.0, 1.0)
        narrow, wide = self.crop_ratio or (1.0, 1.0)
        share = self.test_split
        for ok, message in (
            (self.size is None or 1 <= self.size <= 4096, f"--size is {self.size}; it must lie between 1 and 4096"),
            (self.padding is None or self.padding >= 0, f"--padding is {self.padding}; it must not be negative"),
            (0 < low <= high <= 1, f"--crop-scale is {low:g} {high:g}; it must be LOW HIGH with 0 < LOW ≤ HIGH ≤ 1"),
            (0 < narrow <= wide < math.inf, f"--crop-ratio is {narrow:g} {wide:g}; it must be LOW HIGH, both positive"),
            (share is None or 0 < share < 1, f"--test-split is {share}; it must lie between 0 and 1"),
            (
                self.test_resize is None or self.size is None or self.test_resize >= self.size,
                f"--test-resize is {self.test_resize}; it must be at least --size {self.size}",
            ),
        ):
            if not ok:
                raise ValueError(message)
        known("augmentation", self.augmentation, get_args(AugmentationName))
        if self.channels not in (1, 3):
            raise ValueError(f"--channels is {self.channels}; it must be 1 or 3")
        # Check that each option belongs to the augmentation.
        own = _OPTIONS_OF[self.augmentation]
        for name in ("padding", "crop_scale", "crop_ratio", "test_resize"):
            if getattr(self, name) is not None and name not in own:
                option = f"--{name.replace('_', '-')}"
                uses = " and ".join(kind for kind, names in _OPTIONS_OF.items() if name in names)
                raise ValueError(f"{option} is an option of --augmentation {uses}, not of {self.augmentation}")
        if self.augmentation == "resized-crop" and self.channels == 1:
            raise ValueError("--augmentation resized-crop stores colour images; give --channels 3")

    def draws(self, size: int) -> Augmentation:
        """Return the augmentation for images of this size."""
        flip, ratio = self.flip, self.crop_ratio or (3 / 4, 4 / 3)
        if self.augmentation == "none":
            return CropFlip(padding=0, flip=False)
        if self.augmentation == "crop-flip":
            return CropFlip(padding=size // 8 if self.padding is None else self.padding, flip=flip)
        if self.augmentation == "zoom-flip":
            return ZoomFlip(scale=self.crop_scale or (0.5, 1.0), ratio=ratio, flip=flip)
        resize = round(size * 256 / 224) if self.test_resize is None else self.test_resize
        return ResizedCropFlip(
            size=size, scale=self.crop_scale or (0.08, 1.0), ratio=ratio, flip=flip, test_resize=resize
        )


def check_own_name(name: str) -> str:
    """Return the name of a data set of the user's own.

    Raises:
        ValueError: The name has other characters, or is a built-in name in another spelling.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"--name is {name[:80]!r}; it must begin with a letter or digit, and have at most 64 letters, digits, "
            "_ and -, because it names a directory"
        )
    if name not in DATASETS and (usual := name.lower().replace("-", "_")) in DATASETS:
        raise ValueError(f"--name {name} is too close to the built-in data set {usual}; choose another")
    return name


def started(name: str, options: OwnOptions, source: str) -> DataSpec:
    """Return the specification before the images are read: without classes, mean and standard deviation.

    Raises:
        ValueError: The size is missing.
    """
    if options.size is None:
        raise ValueError(f"{name} is a data set of your own; give its --size in pixels, such as --size 64")
    return DataSpec(
        name=name,
        num_classes=MOST_CLASSES,
        channels=options.channels,
        image_size=options.size,
        mean=(),
        std=(),
        augmentation=options.draws(options.size),
        raw=RawSource(default=source, own=True),
    )


MOST_CLASSES = 1 << 20
"""Number of classes before the source is read. More are refused."""


@dataclass
class Measured:
    """Sums over the pixels of the training images, in integers: independent of order and threads."""

    channels: int
    num_pixels: int = 0
    sums: list[int] = field(default_factory=lambda: [0, 0, 0])
    squares: list[int] = field(default_factory=lambda: [0, 0, 0])
    all_gray: bool = True

    def add(self, image: ImageSums) -> None:
        """Add the sums of one image."""
        self.num_pixels += image.num_pixels
        self.all_gray &= image.is_gray
        for channel in range(3):
            self.sums[channel] += image.sums[channel]
            self.squares[channel] += image.squares[channel]

    def completes(self, spec: DataSpec) -> DataSpec:
        """Return the specification with the mean and the standard deviation of each channel.

        Raises:
            ValueError: All pixels of a channel are equal.
        """
        count = self.num_pixels
        means, deviations = [], []
        for channel in range(self.channels):
            total, squares = self.sums[channel], self.squares[channel]
            scatter = count * squares - total**2
            if scatter <= 0:
                raise ValueError(
                    f"all training images of {spec.name} have equal pixels in channel {channel}; check the source"
                )
            means.append(round(total / (255 * count), 6))
            deviations.append(max(round(math.sqrt(scatter) / (255 * count), 6), 1e-6))
        return replace(spec, mean=tuple(means), std=tuple(deviations))


@dataclass(frozen=True)
class ImageSums:
    """Sums over the pixels of one image."""

    num_pixels: int
    sums: tuple[int, ...]
    squares: tuple[int, ...]
    is_gray: bool

    @classmethod
    def of(cls, pixels_HWC: np.ndarray) -> ImageSums:
        """Return the sums of an RGB image, uint8 (H, W, 3)."""
        flat = pixels_HWC.reshape(-1, 3).astype(np.int64)
        gray = bool((pixels_HWC == pixels_HWC[..., :1]).all())
        return cls(len(flat), tuple(flat.sum(0).tolist()), tuple((flat * flat).sum(0).tolist()), gray)


_KINDS: dict[str, Any] = {
    "crop-flip": CropFlip,
    "zoom-flip": ZoomFlip,
    "resized-crop": ResizedCropFlip,
    "file": FileTransforms,
}


def file_transforms(sha256: str) -> FileTransforms:
    """Return the transforms of the file with this SHA-256, with the installed version of torchvision."""
    try:
        version = importlib.metadata.version("torchvision").partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        version = "none"
    return FileTransforms(sha256, version)


def spec_text(spec: DataSpec) -> str:
    """Return the content of `spec.json`."""
    names = {kind: name for name, kind in _KINDS.items()}
    augmentation = {"name": names[type(spec.augmentation)], **asdict(spec.augmentation)}
    augmentation.pop("torchvision", None)  # that of each training counts
    content = {
        "format": FORMAT,
        **{name: value for name, value in asdict(spec).items() if name != "raw"},
        "augmentation": augmentation,
        "class_names": spec.raw.class_names,
    }
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def read_spec(text: str, where: Path | str) -> DataSpec:
    """Return the specification of `spec.json`.

    Args:
        text: Content of the file.
        where: Its path, for messages.

    Raises:
        ValueError: The content is not a valid specification.
    """
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r:.40}")
        chosen = dict(content["augmentation"])
        kind: Any = _KINDS[chosen.pop("name")]
        kind = file_transforms if kind is FileTransforms else kind
        augmentation = kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in chosen.items()})
        names = tuple(content["class_names"])
        spec = DataSpec(
            name=content["name"],
            num_classes=content["num_classes"],
            channels=content["channels"],
            image_size=content["image_size"],
            mean=tuple(content["mean"]),
            std=tuple(content["std"]),
            augmentation=augmentation,
            raw=RawSource(default="", own=True, class_names=names),
        )
        _check(spec)
    except Exception as error:  # JSON of any form
        problem = f"{type(error).__name__}: {one_line(error)}" if isinstance(error, KeyError) else one_line(error)
        raise ValueError(
            f"{where} is no specification of a data set ({problem[:200]}); prepare the data again"
        ) from error
    return spec


def _check(spec: DataSpec) -> None:
    """Raise ValueError for a specification with values that no preparation writes."""
    numbers = (spec.num_classes, spec.channels, spec.image_size)
    statistics = (*spec.mean, *spec.std)
    augmentation = spec.augmentation
    for ok, what in (
        (isinstance(spec.name, str) and _NAME.fullmatch(spec.name) is not None, "name"),
        (all(type(number) is int for number in numbers), "num_classes, channels or image_size"),
        (2 <= spec.num_classes <= MOST_CLASSES, "num_classes"),
        (spec.channels in (1, 3) and 1 <= spec.image_size <= 4096, "channels or image_size"),
        (len(spec.mean) == len(spec.std) == spec.channels, "mean or std"),
        (all(type(value) is float and 0 <= value <= 1 for value in statistics) and min(spec.std) > 0, "mean or std"),
        (len(spec.raw.class_names) == spec.num_classes, "class_names"),
        (all(isinstance(name, str) for name in spec.raw.class_names), "class_names"),
        (isinstance(augmentation, FileTransforms) or type(augmentation.flip) is bool, "augmentation"),
    ):
        if not ok:
            raise ValueError(f"invalid {what}")
    # The options check the numbers of the augmentation.
    if isinstance(augmentation, FileTransforms):
        fine = re.fullmatch("[0-9a-f]{64}", augmentation.sha256) is not None
    elif isinstance(augmentation, CropFlip):
        fine = type(augmentation.padding) is int and 0 <= augmentation.padding <= 4096
    else:
        fine = all(type(value) is float for value in (*augmentation.scale, *augmentation.ratio))
        OwnOptions(augmentation="zoom-flip", crop_scale=augmentation.scale, crop_ratio=augmentation.ratio)
    if isinstance(augmentation, ResizedCropFlip):
        fine &= augmentation.size == spec.image_size and type(augmentation.test_resize) is int
        fine &= augmentation.test_resize >= spec.image_size and spec.channels == 3
    if not fine:
        raise ValueError("invalid augmentation")


def own_spec(home: Path, manifests: dict[str, Manifest]) -> DataSpec:
    """Return the specification in a directory of prepared data.

    Args:
        home: Directory of the data set.
        manifests: Manifest of each split. Both have the digest of `spec.json`.

    Raises:
        ValueError: The file is missing, invalid, or differs from the manifests.
    """
    # Compare the digest before the content is parsed.
    path = home / SPEC_FILE
    try:
        content = read_bounded(path, _MOST_BYTES)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing, but its manifests exist; prepare the data again") from None
    digest = hashlib.sha256(content).hexdigest()
    for split, manifest in manifests.items():
        record = manifest.files.get(SPEC_FILE)
        if record is None or record.sha256 != digest:
            told = "has none of it" if record is None else f"says {record.sha256[:12]}…"
            raise ValueError(
                f"{path} was altered: its SHA-256 is {digest[:12]}…, but {home / split}.json {told}; "
                "prepare the data again"
            )
    spec = read_spec(content.decode(errors="replace"), path)
    if spec.name != home.name:
        raise ValueError(f"{path} describes {spec.name}, not {home.name}; prepare the data again")
    return spec


def spec_of(name: str, directory: Path | str) -> DataSpec:
    """Return the specification of a data set: built in, or prepared by the user.

    Args:
        name: Name in DATASETS, or of a directory with `spec.json`.
        directory: Directory of prepared data sets.

    Raises:
        ValueError: The name is unknown, or the specification is not valid. The message lists the known names.
    """
    if name in DATASETS:
        return DATASETS[name]
    # An unknown name suggests the nearest, and the command that prepares it.
    home = Path(directory) / name
    prepared = prepared_names(directory)
    if name not in prepared:
        try:
            known("data set", name, [*DATASETS, *prepared])
        except ValueError as error:
            example = command(f"prepare --name {name} --source SOURCE --size PIXELS --out {directory}")
            hint = f"; to prepare one of your own: {example}" if _NAME.fullmatch(name) else ""
            raise ValueError(f"{error}; {home} has none of your own{hint}") from None
    # Both manifests have the digest of the specification.
    manifests = {}
    for split in SPLITS:
        try:
            manifests[split] = Manifest.load(home / f"{split}.json")
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{home} is not completely prepared ({split}.json is missing); "
                f"run: {command(f'prepare --name {name} --out {directory}')}"
            ) from None
    return own_spec(home, manifests)


def prepared_names(directory: Path | str) -> list[str]:
    """Return the names of the user's own data sets in a directory of prepared data sets."""
    try:
        found = [path.parent.name for path in Path(directory).glob(f"*/{SPEC_FILE}")]
    except OSError:
        return []
    return sorted(name for name in found if _NAME.fullmatch(name) and name not in DATASETS)


def with_classes(spec: DataSpec, names: tuple[str, ...]) -> DataSpec:
    """Return the specification with these classes, in label order.

    Raises:
        ValueError: There are fewer than two classes, or too many.
    """
    if len(names) < 2:
        listed = f" ({names[0]})" if names else ""
        raise ValueError(f"{spec.name} has {len(names)} classes{listed}; a classifier needs at least two")
    if len(names) >= MOST_CLASSES:
        raise ValueError(f"{spec.name} has {len(names):,} classes; at most {MOST_CLASSES - 1:,} are allowed")
    for name in names:
        if any("\ud800" <= letter <= "\udfff" for letter in name):  # other bytes in the name of a directory
            raise ValueError(f"the name of the class {for_terminal(name)} is no text in UTF-8; rename it")
    return replace(spec, num_classes=len(names), raw=replace(spec.raw, class_names=names))


def describe(spec: DataSpec, options: OwnOptions, made_split: bool) -> dict[str, Any]:
    """Return the options of a data set of the user's own that determine the stored images."""
    chosen: dict[str, Any] = {"image_size": spec.image_size, "channels": spec.channels}
    if spec.fixed_size:
        chosen["resize"] = "centre square to image_size, bilinear"
    if made_split:
        share = DEFAULT_SHARE if options.test_split is None else options.test_split
        chosen["test_split"] = {"share": share, "seed": options.split_seed, "by": "sha256 of bytes, in each class"}
    return chosen


DEFAULT_SHARE = 0.1
"""Share of the images in a test split that the preparation makes."""
