"""Read a data set of the user's own: find its classes, and make a test split if the source has none."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from harness.common.digest import sha256_json
from harness.data.own import DEFAULT_SHARE, MOST_CLASSES, OwnOptions, with_classes
from harness.data.readers.raw import MissingSplitError, RawSample, RawSplit, SourceError, read_file
from harness.data.readers.sources import read_split
from harness.data.spec import DataSpec


def read_own(
    spec: DataSpec, source: str, options: OwnOptions, *, allow_missing_classes: bool = False
) -> tuple[DataSpec, dict[str, RawSplit], bool]:
    """Open both splits of a user's own data set.

    Args:
        spec: Its specification, without classes.
        source: See `read_split`. It may lack a test split.
        options: Share and seed of a test split that is made here.
        allow_missing_classes: Accept integer labels that do not begin with 0.

    Returns:
        The specification with classes, the splits by name, and whether the test split was made here.

    Raises:
        ValueError: The source has a test split, and a share was given, or it has fewer than two classes.
        SourceError: The source is damaged, or the splits have different classes.
    """
    # Phase: open the source.
    try:
        test = read_split(spec, source, "test")
    except MissingSplitError:
        test = None
    train = read_split(spec, source, "train")
    if test is not None and options.test_split is not None:
        raise ValueError(
            f"{source} has a test split of its own, with {test.num_samples} images, so --test-split does not apply; "
            "leave it out to use that split, or give the directory of the training images as --source"
        )
    if train.num_samples == 0:
        raise SourceError(f"the train split of {source} holds no images")
    lowest, highest = int(train.labels.min()), int(train.labels.max())
    if lowest < 0:
        raise SourceError(f"the train split of {source} has the label {lowest}; labels begin with 0")
    if not train.class_names and (highest >= MOST_CLASSES or (lowest > 0 and not allow_missing_classes)):
        raise SourceError(
            f"the labels of the train split of {source} are {lowest} to {highest}; integers must number the classes "
            "from 0 on. Other numbers can be texts, which are sorted"
        )

    # Phase: find the classes.
    names = train.class_names or tuple(str(label) for label in range(highest + 1))
    if test is not None and test.class_names and train.class_names and test.class_names != train.class_names:
        odd = sorted(set(train.class_names) ^ set(test.class_names)) or ["their order"]
        raise SourceError(f"the splits of {source} have different classes: {', '.join(odd[:5])}")
    spec = with_classes(spec, names)
    if test is not None:
        return spec, {"train": train, "test": test}, False

    # Phase: make a test split.
    share = DEFAULT_SHARE if options.test_split is None else options.test_split
    chosen = _test_positions(train, share, options.split_seed)
    rest = np.setdiff1d(np.arange(train.num_samples), chosen)
    if not len(chosen) or not len(rest):
        raise ValueError(
            f"{source} has {train.num_samples} different images at most, too few to make a test split of {share:g}; "
            "give another --test-split, or a source with a test split"
        )
    whole = {"made_from": train.num_samples}
    return spec, {"train": _part(train, rest, whole), "test": _part(train, chosen, whole)}, True


def _test_positions(raw: RawSplit, share: float, seed: int) -> np.ndarray:
    """Return the positions of the test images, sorted, int64.

    Each class is ordered by SHA-256 of (seed, bytes of the image), and its first images are chosen. So the choice does
    not depend on names and order. Images with equal bytes stay in one split: no test image is a training image.
    """
    # Group equal images, over all classes.
    groups: dict[str, list[int]] = {}
    for position, sample in enumerate(raw.samples()):
        groups.setdefault(sha256_json([seed, _digest(sample)]), []).append(position)
    by_class: dict[int, list[list[int]]] = {}
    for key in sorted(groups):
        by_class.setdefault(int(raw.labels[groups[key][0]]), []).append(groups[key])
    # Choose whole groups of each class until its share is reached, but leave one for training.
    counts = np.bincount(raw.labels)
    chosen: list[int] = []
    for label, own in by_class.items():
        wanted, taken = max(1, round(share * int(counts[label]))), 0
        for group in own[: len(own) - 1]:
            if taken >= wanted:
                break
            chosen += group
            taken += len(group)
    return np.sort(np.array(chosen, np.int64))


def _digest(sample: RawSample) -> str:
    """Return the SHA-256 of an undecoded image: of its file, or of its pixels."""
    image: Any = sample.image
    if isinstance(image, Path):
        image = read_file(image)
    if isinstance(image, np.ndarray):
        image = repr(image.shape).encode() + image.tobytes()
    if not isinstance(image, bytes):
        image = f"{image.mode} {image.size}".encode() + image.tobytes()  # a Pillow image
    return hashlib.sha256(image).hexdigest()


def _part(raw: RawSplit, positions: np.ndarray, notes: dict[str, Any]) -> RawSplit:
    """Return some samples of a split, in their order."""
    wanted = set(positions.tolist())

    def samples() -> Iterator[RawSample]:
        return (sample for index, sample in enumerate(raw.samples()) if index in wanted)

    return RawSplit(raw.labels[positions], samples, raw.notes | notes, raw.class_names)
