"""Raw images as they come: which reader a source needs, and those of the common formats.

These are scikit-learn's digits, IDX files, image folders, parquet and arrow files and the hub; the data sets' original
archives have files of their own. Each reader gives samples in a fixed order, undecoded where possible; decoding is
prepare.py's.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.augment import draw
from harness.data.readers.cifar import is_cifar_directory, read_cifar
from harness.data.readers.ilsvrc import is_ilsvrc_directory, read_ilsvrc
from harness.data.readers.raw import IMAGE_SUFFIXES, RawSample, RawSplit, check_same_classes, from_arrays
from harness.data.readers.tiny_imagenet import is_tiny_imagenet_directory, read_tiny_imagenet
from harness.data.spec import DataSpec

_ARCHIVES = {".tar.gz": read_cifar, ".tgz": read_cifar, ".tar": read_cifar, ".zip": read_tiny_imagenet}


def read_split(spec: DataSpec, source: str, split: str) -> RawSplit:
    """Open one split ("train" or "test") of a raw source.

    `source` is `scikit-learn` (digits), an original archive of CIFAR or Tiny-ImageNet or a directory as it holds,
    ImageNet's tars, a directory with IDX files, an image folder (split/class/image), parquet files, a directory saved
    by `datasets`, or a data set's name on the Hugging Face hub. Of a set that takes only some training images, these
    are chosen by their position. Raises FileNotFoundError or ValueError with what was looked for.
    """
    raw = _opened(spec, source, split)
    return raw if split == "test" or spec.raw.num_train is None else _chosen(raw, spec.raw.num_train, source)


def _opened(spec: DataSpec, source: str, split: str) -> RawSplit:
    if source == "scikit-learn":
        return _digits(spec, split)
    path = Path(source).expanduser()
    if path.is_file():
        return _file_reader(spec, path)(spec, path, split)
    if path.is_dir():
        return _directory_reader(path)(spec, path, split)
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise FileNotFoundError(_no_source(spec, source))
    return _hub(spec, source, split)


def _chosen(raw: RawSplit, num_samples: int, source: str) -> RawSplit:
    """Return `num_samples` of the samples, in their order; which ones is fixed for ever."""
    if num_samples > raw.num_samples:
        raise ValueError(f"{source} holds {raw.num_samples} training images; {num_samples} are needed")
    chosen = set(_keyed_order(raw.num_samples)[:num_samples].tolist())

    def samples() -> Iterator[RawSample]:
        return (sample for index, sample in enumerate(raw.samples()) if index in chosen)

    return RawSplit(num_samples, samples, raw.notes | {"chosen": f"{num_samples} of {raw.num_samples}, by key"})


def _keyed_order(num_samples: int) -> np.ndarray:
    """Return the positions 0 … num_samples − 1 in order of draw(0, i, 0)."""
    positions = np.arange(num_samples, dtype=np.uint64)
    with np.errstate(over="ignore"):
        return np.argsort(draw(np.uint64(0), positions, np.uint64(0)), kind="stable")


def _no_source(spec: DataSpec, source: str) -> str:
    hint = ""
    if spec.name.startswith("fashion_mnist"):
        hint = " (Debian: apt install dataset-fashion-mnist; on the hub: --source zalando-datasets/fashion_mnist)"
    return f"no directory {source}, and it is not the name of a hub data set (owner/name){hint}"


def _file_reader(spec: DataSpec, path: Path) -> Callable[[DataSpec, Path, str], RawSplit]:
    if path.suffix == ".parquet":
        raise ValueError(f"{path} is one file; give the directory that holds the train and the test parquet files")
    if path.name.startswith("ILSVRC2012"):
        raise ValueError(f"{path} is one of ImageNet's archives; give the directory that holds them all")
    for ending, reader in _ARCHIVES.items():
        if path.name.endswith(ending):
            return reader
    raise ValueError(
        f"{path} is a file of no known kind; a --source that is one file is an archive as the data set's authors give "
        f"it, ending in {', '.join(_ARCHIVES)}"
    )


def _directory_reader(path: Path) -> Callable[[DataSpec, Path, str], RawSplit]:
    if any((path / f"train-images-idx3-ubyte{ending}").exists() for ending in ("", ".gz")):
        return _idx
    if is_cifar_directory(path):
        return read_cifar
    if is_tiny_imagenet_directory(path):
        return read_tiny_imagenet
    if is_ilsvrc_directory(path):
        return read_ilsvrc
    if any((path / name).exists() for name in ("dataset_dict.json", "state.json", "dataset_info.json")):
        return _arrow
    if next(path.rglob("*.parquet"), None) is not None:
        return _parquet
    if any(_has_classes(entry) for entry in path.iterdir() if entry.is_dir()):
        return _image_folder
    archives = [entry for entry in sorted(path.iterdir()) if entry.name.endswith(tuple(_ARCHIVES))]
    hint = f"; if its {archives[0].name} is meant, say --source {archives[0]}" if archives else ""
    raise ValueError(
        f"{path} holds none of: IDX files (train-images-idx3-ubyte[.gz] …), an image folder (train/<class>/<image>), "
        "parquet files (train*.parquet …), a directory saved by datasets (dataset_dict.json), what the archives of "
        f"CIFAR (binary) or Tiny-ImageNet hold, ImageNet's tars{hint}"
    )


def _digits(spec: DataSpec, split: str) -> RawSplit:
    if spec.name != "digits":
        raise ValueError(f"scikit-learn is the source of digits; {spec.name} needs another --source")
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # 0 … 16 → 0 … 255
    # Fixed for ever: the first 500 of the 1,797 in the keyed order are the test split.
    order = _keyed_order(len(images))
    chosen = np.sort(order[:500] if split == "test" else order[500:])
    return from_arrays(images[chosen], digits.target[chosen], [f"digit {index}" for index in chosen])


def _idx(spec: DataSpec, path: Path, split: str) -> RawSplit:
    stem = {"train": "train", "test": "t10k"}[split]
    images_path = _idx_file(path, f"{stem}-images-idx3-ubyte")
    labels_path = _idx_file(path, f"{stem}-labels-idx1-ubyte")
    images, labels = _read_idx(images_path, 3), _read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise ValueError(f"{images_path} holds {len(images)} images, {labels_path} {len(labels)} labels")
    return from_arrays(images, labels, [f"image {index} of {images_path}" for index in range(len(images))])


def _idx_file(path: Path, name: str) -> Path:
    for candidate in (path / name, path / f"{name}.gz"):
        if candidate.exists():
            return candidate
    raise FileNotFoundError(f"{path} holds no {name} or {name}.gz")


def _read_idx(path: Path, ndim: int) -> np.ndarray:
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if content[:3] != b"\0\0\x08" or content[3:4] != bytes([ndim]):
        raise ValueError(f"{path} is not an IDX file of unsigned bytes with {ndim} dimensions")
    shape = tuple(int(size) for size in np.frombuffer(content[4 : 4 + 4 * ndim], ">u4"))
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * ndim)
    if values.size != int(np.prod(shape)):
        raise ValueError(f"{path} holds {values.size} values, its header says {shape}: truncated?")
    return values.reshape(shape)


def _has_classes(split_directory: Path) -> bool:
    return any(entry.is_dir() for entry in split_directory.iterdir())


def _image_folder(spec: DataSpec, path: Path, split: str) -> RawSplit:
    """Read split/class/image files; classes are numbered in the order of their sorted names, as everywhere."""
    directory = _split_directory(spec, path, split)
    classes = _class_names(directory)
    for other in ("train", "test"):
        with_other = _split_directory(spec, path, other)
        check_same_classes(classes, _class_names(with_other), str(directory), str(with_other))
    files = [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((directory / name).rglob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES
    ]

    def samples() -> Iterator[RawSample]:
        for file, label in files:
            yield RawSample(file, label, str(file))

    return RawSplit(len(files), samples, {"num_classes": len(classes)})


def _split_directory(spec: DataSpec, path: Path, split: str) -> Path:
    names = _names(spec, split)
    for name in names:
        if (path / name).is_dir():
            return path / name
    raise FileNotFoundError(f"{path} has no directory {' or '.join(names)} for the {split} split")


def _names(spec: DataSpec, split: str) -> tuple[str, ...]:
    """Return the names under which a raw data set may keep a split, the preferred first."""
    return ("train",) if split == "train" else tuple(dict.fromkeys((*spec.raw.test_splits, "test")))


def _class_names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir() if entry.is_dir())


def _parquet(spec: DataSpec, path: Path, split: str) -> RawSplit:
    import pyarrow.parquet as parquet
    from datasets import load_dataset

    files = _parquet_files(spec, path, split)
    try:
        num_samples = sum(parquet.ParquetFile(file).metadata.num_rows for file in files)
    except Exception as error:
        raise ValueError(f"{path}: a parquet file cannot be read: {error}") from error
    # Streamed: read in order, once, without datasets' own copy of everything on disk.
    rows = load_dataset("parquet", data_files={"train": [str(file) for file in files]}, split="train", streaming=True)
    return _from_rows(spec, rows, num_samples, f"{path} {split}", {"files": len(files)})


def _parquet_files(spec: DataSpec, path: Path, split: str) -> list[Path]:
    """Return the first set of files whose name or directory says the split: train-00000-of-…, test/0000.parquet, …"""
    everything = sorted(path.rglob("*.parquet"))
    names = _names(spec, split)
    for name in names:
        chosen = [file for file in everything if name in _words(file.relative_to(path))]
        if chosen:
            return chosen
    raise FileNotFoundError(f"{path} has no parquet file named {' or '.join(names)} (e.g. {names[0]}-*.parquet)")


def _words(path: Path) -> set[str]:
    text = str(path.with_suffix("")).lower()
    for mark in "/-_.":
        text = text.replace(mark, " ")
    return set(text.split())


def _arrow(spec: DataSpec, path: Path, split: str) -> RawSplit:
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(str(path))
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a directory saved by datasets: {error}") from error
    if not isinstance(saved, DatasetDict):
        wanted = " or ".join(spec.raw.test_splits)
        raise ValueError(f"{path} holds one split; save a DatasetDict with train and {wanted}")
    rows = saved[_split_name(spec, list(saved), split, str(path))]
    return _from_rows(spec, rows, len(rows), f"{path} {split}", {})


def _hub(spec: DataSpec, source: str, split: str) -> RawSplit:
    from datasets import get_dataset_split_names, load_dataset

    try:
        name = _split_name(spec, get_dataset_split_names(source), split, source)
        rows = load_dataset(source, split=name)
    except ValueError:
        raise
    except Exception as error:  # datasets and huggingface_hub raise a dozen kinds
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{source} is not a directory here, and cannot be had from the Hugging Face hub: {first_line} "
            "(not connected? gated: accept its terms and `hf auth login`; or give --source a local copy)"
        ) from error
    return _from_rows(spec, rows, len(rows), f"{source} {name}", {"fingerprint": getattr(rows, "_fingerprint", None)})


def _split_name(spec: DataSpec, names: list[str], split: str, where: str) -> str:
    wanted = _names(spec, split)
    for name in wanted:
        if name in names:
            return name
    found = ", ".join(map(str, names))
    raise ValueError(f"{where} has the splits {found}; the {split} split needs {' or '.join(wanted)}")


def _from_rows(spec: DataSpec, rows: Any, num_samples: int, where: str, notes: dict[str, Any]) -> RawSplit:
    from datasets import Image

    columns = rows.column_names or list(next(iter(rows)))
    for column in (spec.raw.image_column, spec.raw.label_column):
        if column not in columns:
            raise ValueError(f"{where} has the columns {', '.join(columns)}; {spec.name} needs {column!r}")
    if rows.features is not None and isinstance(rows.features[spec.raw.image_column], Image):
        rows = rows.cast_column(spec.raw.image_column, Image(decode=False))

    def samples() -> Iterator[RawSample]:
        for index, row in enumerate(rows):
            image = row[spec.raw.image_column]
            name = f"image {index} of {where}"
            if isinstance(image, dict):
                if image.get("path"):
                    name += f" ({image['path']})"
                image = image["bytes"] if image.get("bytes") is not None else Path(image["path"])
            label = row[spec.raw.label_column]
            if not isinstance(label, int):
                raise ValueError(f"{name} has the label {label!r}; whole numbers are needed")
            yield RawSample(image, label, name)

    return RawSplit(num_samples, samples, notes)
