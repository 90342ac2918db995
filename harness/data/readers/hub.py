"""Read parquet files, saved directories and hub data sets with `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.data.readers.raw import RawSample, RawSplit, split_names
from harness.data.spec import DataSpec


def read_parquet(spec: DataSpec, path: Path, split: str) -> RawSplit:
    """Read one split of a directory of parquet files, in sorted order.

    Raises:
        FileNotFoundError: No file belongs to the split.
        ValueError: A file cannot be read, or a column is missing.
    """
    import pyarrow.parquet as parquet
    from datasets import load_dataset

    files = _parquet_files(spec, path, split)
    try:
        num_samples = sum(parquet.ParquetFile(file).metadata.num_rows for file in files)
    except Exception as error:
        raise ValueError(f"{path}: a parquet file cannot be read: {error}") from error
    # Stream the rows: otherwise `datasets` would first copy all data to disk.
    rows = load_dataset("parquet", data_files={"train": [str(file) for file in files]}, split="train", streaming=True)
    return _from_rows(spec, rows, num_samples, f"{path} {split}", {"files": len(files)})


def _parquet_files(spec: DataSpec, path: Path, split: str) -> list[Path]:
    """Return the files whose name or directory contains the split's name.

    Examples are train-00000-of-… and test/0000.parquet. The first matching name is used.
    """
    everything = sorted(path.rglob("*.parquet"))
    names = split_names(spec, split)
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


def read_arrow(spec: DataSpec, path: Path, split: str) -> RawSplit:
    """Read one split of a DatasetDict that `datasets` saved.

    Raises:
        ValueError: The directory cannot be read, or lacks the split or a column.
    """
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(str(path))
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a directory saved by datasets: {error}") from error
    if not isinstance(saved, DatasetDict):
        wanted = " or ".join(spec.raw.test_splits)
        raise ValueError(f"{path} has only one split; save a DatasetDict with train and {wanted}")
    rows = saved[_split_name(spec, list(saved), split, str(path))]
    return _from_rows(spec, rows, len(rows), f"{path} {split}", {})


def read_hub(spec: DataSpec, source: str, split: str) -> RawSplit:
    """Read one split of a data set on the Hugging Face hub.

    Args:
        spec: The data set.
        source: Name on the hub, owner/name.
        split: train or test.

    Raises:
        ValueError: The data set is not accessible, or lacks the split or a column.
    """
    from datasets import get_dataset_split_names, load_dataset

    try:
        name = _split_name(spec, get_dataset_split_names(source), split, source)
        rows = load_dataset(source, split=name)
    except ValueError:
        raise
    except Exception as error:  # datasets and huggingface_hub raise many types
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{source} is not a local directory and could not be loaded from the Hugging Face hub: {first_line} "
            "(check the connection; for gated data, accept the terms and run `hf auth login`; or pass a local --source)"
        ) from error
    return _from_rows(spec, rows, len(rows), f"{source} {name}", {"fingerprint": getattr(rows, "_fingerprint", None)})


def _split_name(spec: DataSpec, names: list[str], split: str, where: str) -> str:
    wanted = split_names(spec, split)
    for name in wanted:
        if name in names:
            return name
    found = ", ".join(map(str, names))
    raise ValueError(f"{where} has the splits {found}; the {split} split needs {' or '.join(wanted)}")


def _from_rows(spec: DataSpec, rows: Any, num_samples: int, where: str, notes: dict[str, Any]) -> RawSplit:
    # Check the columns, and disable decoding.
    from datasets import Image

    columns = rows.column_names or list(next(iter(rows)))
    for column in (spec.raw.image_column, spec.raw.label_column):
        if column not in columns:
            raise ValueError(f"{where} has the columns {', '.join(columns)}; {spec.name} needs {column!r}")
    if rows.features is not None and isinstance(rows.features[spec.raw.image_column], Image):
        rows = rows.cast_column(spec.raw.image_column, Image(decode=False))

    # Name each sample by its position, and by its file if known.
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
                raise ValueError(f"{name} has the label {label!r}; labels must be integers")
            yield RawSample(image, label, name)

    return RawSplit(num_samples, samples, notes)
