"""Read parquet files with PyArrow, and saved directories and hub data sets with `datasets`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from harness.common.files import refuse_pipe
from harness.common.optional import require
from harness.data.readers.raw import (
    MissingSplitError,
    RawSample,
    RawSplit,
    SourceError,
    reading,
    reason,
    split_names,
    visible,
)
from harness.data.spec import DataSpec

_ROWS = 256
"""Rows of a parquet file that are read at once."""


def read_parquet(spec: DataSpec, path: Path, split: str) -> RawSplit:
    """Read one split of a directory of parquet files, in sorted order.

    A user's own data set can also be one file, or files that name no split. All its images are then training images.

    Raises:
        MissingSplitError: No file belongs to the split.
        SourceError: A file cannot be read or belongs to both splits, or a column is missing.
    """
    require("pyarrow", "a source of parquet files")
    import pyarrow.parquet as parquet

    # Check the columns of all files, and read their labels.
    files = _parquet_files(spec, path, split)
    labels: list[Any] = []
    names: Sequence[str] = ()
    for file in files:
        with reading(file):
            opened = parquet.ParquetFile(file)
            _check_columns(spec, opened.schema_arrow.names, str(file))
            column = opened.read(columns=[spec.raw.label_column])[spec.raw.label_column].to_pylist()
            _check_labels(spec, column, str(file))
            labels += column
            names = names or _recorded_names(spec, opened.schema_arrow.metadata)

    # Stream the images.
    def images() -> Iterator[Any]:
        for file in files:
            with reading(file):
                for batch in parquet.ParquetFile(file).iter_batches(_ROWS, columns=[spec.raw.image_column]):
                    yield from batch[spec.raw.image_column].to_pylist()

    numbers, named = _numbered(spec, labels, f"{path} {split}")
    return _split(spec, images, numbers, named or names, f"{path} {split}", {"files": len(files)})


def _recorded_names(spec: DataSpec, metadata: dict[bytes, bytes] | None) -> list[str]:
    """Return the class names that `datasets` recorded in a parquet file, or []."""
    with suppress(Exception):  # they are only for messages
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return list(map(str, features[spec.raw.label_column]["names"]))
    return []


def has_parquet(path: Path) -> bool:
    """Return whether `path` has a parquet file that is not hidden."""
    return bool(_all_parquet(path))


def _all_parquet(path: Path) -> list[Path]:
    return visible((file for file in path.rglob("*") if file.suffix.lower() == ".parquet"), path)


def _parquet_files(spec: DataSpec, path: Path, split: str) -> list[Path]:
    """Return the files of a split.

    The name of a file decides, as in train-00000-of-00001.parquet. If it names no split, its directories decide, from
    the nearest on, as in test/0000.parquet.

    Raises:
        MissingSplitError: No file belongs to the split.
        SourceError: A file belongs to both splits.
    """
    # Find the names of splits that decide for each file.
    train, test = split_names(spec, "train"), split_names(spec, "test")
    named: dict[Path, set[str]] = {}
    if path.is_file():
        named[path] = set()
    for file in _all_parquet(path):
        parts = [file.stem, *reversed(file.relative_to(path).parts[:-1])]
        named[file] = next((found for part in parts if (found := _words(part) & {*train, *test})), set())
        if named[file] & {*train} and named[file] & {*test}:
            raise SourceError(
                f"{file} would belong to both splits: its name has {' and '.join(sorted(named[file]))}; rename it, "
                "for example to train-0.parquet or test-0.parquet"
            )
    _check_distinct(named)
    # The first name with a file is used.
    names = split_names(spec, split)
    for name in names:
        chosen = [file for file, found in named.items() if name in found]
        if chosen:
            return chosen
    if spec.raw.own and split == "train" and not any(named.values()):
        return list(named)  # no file names a split: all images are training images
    raise MissingSplitError(f"{path} has no parquet file named {' or '.join(names)} (e.g. {names[0]}-*.parquet)")


def _check_distinct(named: Mapping[Path, set[str]]) -> None:
    """Check that no two of the files that name a split are one file, by a link.

    Raises:
        SourceError: Images would be read twice, or test images would be training images.
    """
    seen: dict[tuple[int, int], Path] = {}
    for file, splits in named.items():
        status = file.stat()
        first = seen.setdefault((status.st_dev, status.st_ino), file) if splits else file
        if first != file:
            raise SourceError(f"{first} and {file} are the same file; its images would be read twice. Remove one")


def _words(name: str) -> set[str]:
    """Return the runs of letters in a name, so that train1 and train+extra name a split as train-1 does."""
    return set(re.findall(r"[^\W\d_]+", name.lower()))


def read_arrow(spec: DataSpec, path: Path, split: str) -> RawSplit:
    """Read one split of a DatasetDict that `datasets` saved.

    Raises:
        SourceError: The directory cannot be read, or lacks the split or a column.
    """
    require("datasets", "a source saved by save_to_disk")
    from datasets import DatasetDict, load_from_disk

    with reading(path, "save it again"):
        for file in path.rglob("*"):
            refuse_pipe(file)
        saved = load_from_disk(str(path))
        if isinstance(saved, DatasetDict):
            rows = saved[_split_name(spec, list(saved), split, str(path))]
        elif spec.raw.own and split == "train":
            rows = saved
        else:
            wanted = " or ".join(spec.raw.test_splits)
            raise MissingSplitError(f"{path} has only one split; save a DatasetDict with train and {wanted}")
        # Check all offsets in the mapped files. Damaged ones would let Arrow read outside of them, and crash.
        rows.data.validate(full=True)
        return _from_rows(spec, rows, f"{path} {split}", {})


def read_hub(spec: DataSpec, source: str, split: str) -> RawSplit:
    """Read one split of a data set on the Hugging Face hub.

    Args:
        spec: The data set.
        source: Name on the hub, owner/name.
        split: train or test.

    Raises:
        SourceError: The data set is not accessible, or lacks the split or a column.
    """
    require("datasets", f"the source {source} on the Hugging Face hub")
    from datasets import get_dataset_split_names, load_dataset

    try:
        name = _split_name(spec, get_dataset_split_names(source), split, source)
        rows = load_dataset(source, split=name)
    except SourceError:
        raise
    except Exception as error:  # datasets and huggingface_hub raise many types
        raise SourceError(
            f"{source} is not a local directory and could not be loaded from the Hugging Face hub: {reason(error)} "
            "(check the connection; for gated data, accept the terms and run `hf auth login`; or pass a local --source)"
        ) from error
    with reading(f"{source} {name}"):
        return _from_rows(spec, rows, f"{source} {name}", {"fingerprint": getattr(rows, "_fingerprint", None)})


def _split_name(spec: DataSpec, names: list[str], split: str, where: str) -> str:
    wanted = split_names(spec, split)
    for name in wanted:
        if name in names:
            return name
    found = ", ".join(map(str, names))
    raise MissingSplitError(f"{where} has the splits {found}; the {split} split needs {' or '.join(wanted)}")


def _check_columns(spec: DataSpec, columns: Sequence[str], where: str) -> None:
    for option, column in (("--image-column", spec.raw.image_column), ("--label-column", spec.raw.label_column)):
        if column not in columns:
            raise SourceError(
                f"{where} has the columns {', '.join(columns)}; {spec.name} needs {column!r}, or pass {option}"
            )


def _numbered(spec: DataSpec, labels: Sequence[Any], where: str) -> tuple[list[int], Sequence[str]]:
    """Return integer labels, and the class names if the labels are texts.

    Only a user's own data set can have texts. They are numbered in sorted order, as directories are.

    Raises:
        SourceError: A label is neither, or some are texts and others are not.
    """
    _check_labels(spec, labels, where)
    if not any(isinstance(label, str) for label in labels):
        return list(labels), ()
    names = sorted(set(labels))
    numbers = {name: number for number, name in enumerate(names)}
    return [numbers[label] for label in labels], names


def _check_labels(spec: DataSpec, labels: Sequence[Any], where: str) -> None:
    """Raise SourceError for a label that is no integer, unless all are texts of a user's own data set."""
    if spec.raw.own and labels and all(isinstance(label, str) for label in labels):
        return
    for index, label in enumerate(labels):
        if not isinstance(label, int):
            raise SourceError(f"image {index} of {where} has the label {label!r:.60}; labels must be integers")


def _from_rows(spec: DataSpec, rows: Any, where: str, notes: dict[str, Any]) -> RawSplit:
    """Return a split from the rows of `datasets`.

    Raises:
        SourceError: A column is missing, or a label is not an integer.
    """
    from datasets import ClassLabel, Image

    # Check the columns and the labels, and disable decoding.
    _check_columns(spec, rows.column_names, where)
    labels, named = _numbered(spec, list(rows[spec.raw.label_column]), where)
    kind, column = rows.features[spec.raw.label_column], spec.raw.image_column
    names = kind.names if isinstance(kind, ClassLabel) else named
    if isinstance(rows.features[column], Image):
        rows = rows.cast_column(column, Image(decode=False))
    return _split(spec, lambda: (row[column] for row in rows.select_columns([column])), labels, names, where, notes)


def _split(
    spec: DataSpec,
    images: Callable[[], Iterator[Any]],
    labels: Sequence[int],
    names: Sequence[str],
    where: str,
    notes: dict[str, Any],
) -> RawSplit:
    """Return a split whose samples are named by position, and by file if it is known.

    Args:
        spec: The data set.
        images: Returns an iterator of images: the bytes of files, or {"bytes", "path"}.
        labels: Their labels.
        names: Class names by label. Names that the data set does not have are dropped.
        where: Location of the images, for messages.
        notes: Facts for the manifest.
    """

    # Name each sample, and find its bytes or its file.
    def samples() -> Iterator[RawSample]:
        with reading(where):
            for index, (image, label) in enumerate(zip(images(), labels, strict=True)):
                name = f"image {index} of {where}"
                if isinstance(image, dict):
                    if image.get("path"):
                        name += f" ({image['path']})"
                    held, path = image.get("bytes"), image.get("path")
                    image = held if held is not None or not isinstance(path, str) else Path(path)
                if not isinstance(image, bytes | Path):
                    raise SourceError(
                        f"{name} is {'empty' if image is None else f'a {type(image).__name__}'}; an image is the bytes "
                        "of a file, or {bytes, path}"
                    )
                yield RawSample(image, label, name)

    return RawSplit(np.array(labels, np.int64), samples, notes, tuple(names[: spec.num_classes]))
