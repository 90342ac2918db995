"""Choose the reader for a source of raw images.

scikit-learn's digits are read here.

A reader returns samples in a fixed order, undecoded where possible. `harness.data.prepare` decodes them. To add a
format, add a module here and an entry in `_file_reader` or `_directory_reader`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from harness.common.optional import require
from harness.data.augment import draw
from harness.data.readers.cifar import is_cifar_directory, read_cifar
from harness.data.readers.folder import is_class_folder, is_image_folder, read_image_folder
from harness.data.readers.hub import has_parquet, read_arrow, read_hub, read_parquet
from harness.data.readers.idx import is_idx_directory, read_idx
from harness.data.readers.ilsvrc import is_ilsvrc_directory, read_ilsvrc
from harness.data.readers.raw import MissingSourceError, RawSample, RawSplit, SourceError, from_arrays, reading, visible
from harness.data.readers.tiny_imagenet import is_tiny_imagenet_directory, read_tiny_imagenet
from harness.data.spec import DataSpec

_ARCHIVES = {".tar.gz": read_cifar, ".tgz": read_cifar, ".tar": read_cifar, ".zip": read_tiny_imagenet}


def read_split(spec: DataSpec, source: str, split: str) -> RawSplit:
    """Open one split of a raw source.

    Sources are:
    - `scikit-learn`, for digits
    - an original archive of CIFAR or Tiny-ImageNet, or its unpacked directory
    - a directory with ImageNet's tars, IDX files or parquet files
    - an image folder (split/class/image)
    - a directory that `datasets` saved
    - the name of a data set on the Hugging Face hub

    If the data set uses only part of the training images, a fixed hash of the position selects them.

    Args:
        spec: The data set.
        source: The source.
        split: train or test.

    Raises:
        MissingSourceError: The source does not exist. The message says which kinds of source were tried.
        SourceError: The source has an unknown format or is damaged.
    """
    # Any other exception of a reader becomes one line, while opening as well as while reading samples.
    with reading(source, "check the source"):
        raw = _opened(spec, source, split)

    def samples() -> Iterator[RawSample]:
        with reading(source, "check the source"):
            yield from raw.samples()

    found = replace(raw, samples=samples)
    return found if split == "test" or spec.raw.num_train is None else _chosen(found, spec.raw.num_train, source)


def _opened(spec: DataSpec, source: str, split: str) -> RawSplit:
    if source == "scikit-learn":
        return _digits(spec, split)
    path = Path(source).expanduser()
    if path.is_file():
        return _file_reader(spec, path)(spec, path, split)
    if path.is_dir():
        return _directory_reader(spec, path)(spec, path, split)
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise MissingSourceError(_no_source(spec, source))
    return read_hub(spec, source, split)


def _chosen(raw: RawSplit, num_samples: int, source: str) -> RawSplit:
    """Return `num_samples` of the samples in their order. Never change this selection."""
    if num_samples > raw.num_samples:
        raise SourceError(f"{source} has {raw.num_samples} training images; {num_samples} are needed")
    positions = np.sort(_keyed_order(raw.num_samples)[:num_samples])
    chosen = set(positions.tolist())

    def samples() -> Iterator[RawSample]:
        return (sample for index, sample in enumerate(raw.samples()) if index in chosen)

    notes = raw.notes | {"chosen": f"{num_samples} of {raw.num_samples}, by key"}
    return RawSplit(raw.labels[positions], samples, notes, raw.class_names, raw.num_samples)


def _keyed_order(num_samples: int) -> np.ndarray:
    """Return the positions 0 … num_samples − 1, sorted by draw(0, i, 0)."""
    positions = np.arange(num_samples, dtype=np.uint64)
    with np.errstate(over="ignore"):
        return np.argsort(draw(np.uint64(0), positions, np.uint64(0)), kind="stable")


def _no_source(spec: DataSpec, source: str) -> str:
    hint = ""
    if spec.name.startswith("fashion_mnist"):
        hint = " (Debian: apt install dataset-fashion-mnist; on the hub: --source zalando-datasets/fashion_mnist)"
    return f"{source} is neither a directory nor the name of a hub data set (owner/name){hint}"


def _file_reader(spec: DataSpec, path: Path) -> Callable[[DataSpec, Path, str], RawSplit]:
    if path.suffix.lower() == ".parquet" and spec.raw.own:
        return read_parquet
    if path.suffix == ".parquet":
        raise SourceError(f"{path} is one file; pass the directory of the train and test parquet files")
    if path.name.startswith("ILSVRC2012"):
        raise SourceError(f"{path} is one of ImageNet's archives; pass the directory that has all of them")
    for ending, reader in () if spec.raw.own else _ARCHIVES.items():
        if path.name.endswith(ending):
            return reader
    if spec.raw.own:
        raise SourceError(f"{path} has an unknown format; a --source that is a single file must be a parquet file")
    raise SourceError(
        f"{path} has an unknown format; a --source that is a single file must be an original archive of the data set, "
        f"ending in {', '.join(_ARCHIVES)}"
    )


def _directory_reader(spec: DataSpec, path: Path) -> Callable[[DataSpec, Path, str], RawSplit]:
    # Detect the format by characteristic files.
    if is_idx_directory(path):
        return read_idx
    if is_cifar_directory(path):
        return read_cifar
    if is_tiny_imagenet_directory(path):
        return read_tiny_imagenet
    if is_ilsvrc_directory(path):
        return read_ilsvrc
    if any((path / name).exists() for name in ("dataset_dict.json", "state.json", "dataset_info.json")):
        return read_arrow
    if has_parquet(path):
        return read_parquet
    if is_image_folder(path) or (spec.raw.own and is_class_folder(path)):
        return read_image_folder
    # Nothing matches: list the known formats, and point to an archive in the directory.
    archives = [entry for entry in visible(path.iterdir()) if entry.name.endswith(tuple(_ARCHIVES))]
    hint = f"; to use its {archives[0].name}, pass --source {archives[0]}" if archives else ""
    raise SourceError(
        f"{path} has none of: IDX files (train-images-idx3-ubyte[.gz] …), an image folder (train/<class>/<image>), "
        "parquet files (train*.parquet …), a directory saved by datasets (dataset_dict.json), the unpacked archive of "
        f"CIFAR (binary) or Tiny-ImageNet, ImageNet's tars{hint}"
    )


def _digits(spec: DataSpec, split: str) -> RawSplit:
    if spec.name != "digits":
        raise SourceError(f"scikit-learn provides only digits; {spec.name} needs another --source")
    require("sklearn", "the data set digits")
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # 0 … 16 → 0 … 255
    # The first 500 of the 1,797 images in keyed order are the test split. Never change this.
    order = _keyed_order(len(images))
    chosen = np.sort(order[:500] if split == "test" else order[500:])
    return from_arrays(images[chosen], digits.target[chosen], [f"digit {index}" for index in chosen])
