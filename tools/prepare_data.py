"""Prepare a data set: raw images → FFCV files with a content digest (and tensors for the in-memory loader).

python tools/prepare_data.py digits --out data/
python tools/prepare_data.py fashion_mnist --source /usr/share/datasets/fashion-mnist --out data/
python tools/prepare_data.py imagenet --source ILSVRC/imagenet-1k --out data/ --max-resolution 500
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from harness.data.prepare import ImageOptions, WriteMode, prepare
from harness.data.spec import data_spec

_DEFAULTS = ImageOptions()


@dataclass(frozen=True)
class Arguments:
    """Write a data set's train and test files to OUT/NAME; a finished split is kept, an unfinished one begun again."""

    name: tyro.conf.Positional[str]
    """digits, fashion_mnist or imagenet."""
    source: str | None = None
    """Where the raw images are: a directory (IDX files, train/<class>/<image>, parquet files, or saved by datasets) or
    a data set's name on the Hugging Face hub. If not given: scikit-learn for digits,
    /usr/share/datasets/fashion-mnist (Debian's dataset-fashion-mnist), ILSVRC/imagenet-1k."""
    out: Path = Path("data")
    """Directory of all data sets."""
    max_resolution: int | None = None
    """imagenet: longest side in pixels, larger images are made smaller; 0 keeps every size (default 500)."""
    write_mode: WriteMode | None = None
    """imagenet: raw is fastest to read and ten times the space; proportion stores some as JPEG (default proportion)."""
    proportion: float | None = None
    """imagenet: share of the images stored as JPEG in write mode proportion (default 0.5)."""
    quality: int | None = None
    """imagenet: JPEG quality (default 90)."""
    keep_jpeg: Annotated[bool, tyro.conf.arg(help="imagenet: keep small enough RGB JPEGs as they are.")] = False
    num_workers: int | None = None
    """Encoding threads; all available cores if not given. The files do not depend on it."""
    overwrite: bool = False
    """Replace finished splits."""


def _options(arguments: Arguments) -> ImageOptions | None:
    given = {
        field: value
        for field in ("max_resolution", "write_mode", "proportion", "quality")
        if (value := getattr(arguments, field)) is not None
    }
    if arguments.keep_jpeg:
        given["keep_jpeg"] = True
    return ImageOptions(**given) if given else None


def main(arguments: Arguments) -> None:
    """Prepare both splits and say where they are."""
    spec = data_spec(arguments.name)
    manifests = prepare(
        spec.name, arguments.out, arguments.source, _options(arguments), arguments.num_workers, arguments.overwrite
    )
    for manifest in manifests:
        content = manifest.content_digest[:16]
        print(f"{manifest.name} {manifest.split}: {manifest.num_samples} images, content {content}")
    print(f"in {arguments.out / spec.name}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command again")
