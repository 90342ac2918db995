"""Define raw splits: undecoded samples in a fixed order.

All readers return them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.spec import DataSpec

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2"}


@dataclass(frozen=True)
class RawSample:
    """One undecoded sample."""

    image: np.ndarray | bytes | Path | Any
    """uint8 pixels (H, W) or (H, W, 3), the bytes of a file, its path, or a PIL image."""
    label: int
    where: str
    """Location of the sample, for messages."""


@dataclass(frozen=True)
class RawSplit:
    """One split of a raw data set."""

    num_samples: int
    samples: Callable[[], Iterator[RawSample]]
    notes: dict[str, Any]
    """Additional facts for the manifest."""


def from_arrays(images: np.ndarray, labels: np.ndarray, where: Sequence[str]) -> RawSplit:
    """Return a split from arrays in memory.

    Args:
        images: uint8 (N, H, W) or (N, H, W, 3).
        labels: Integers (N,).
        where: N locations, for messages.
    """

    def samples() -> Iterator[RawSample]:
        for image, label, name in zip(images, labels, where, strict=True):
            yield RawSample(image, int(label), name)

    return RawSplit(len(images), samples, {})


def check_same_classes(train: Sequence[str], test: Sequence[str], train_name: str, test_name: str) -> None:
    """Check that both splits have the same sorted class names.

    Positions in this list are the labels.

    Raises:
        ValueError: The names differ.
    """
    if list(train) == list(test):
        return
    odd = sorted(set(train) ^ set(test))
    listed = ", ".join(odd[:3]) + (f" and {len(odd) - 3} more" if len(odd) > 3 else "")
    raise ValueError(
        f"{train_name} and {test_name} have different classes ({listed} in only one); labels would not be comparable"
    )


def split_names(spec: DataSpec, split: str) -> tuple[str, ...]:
    """Return the possible names of a raw split, preferred name first."""
    return ("train",) if split == "train" else tuple(dict.fromkeys((*spec.raw.test_splits, "test")))
