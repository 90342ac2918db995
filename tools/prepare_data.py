"""Prepare a data set: raw images become FFCV files with a content digest, and tensors for the in-memory loader.

For example `digits`; `fashion_mnist --source DIRECTORY`; `imagenet --source ILSVRC/imagenet-1k --max-resolution 400`.
A finished split is kept, an unfinished one begun again. --write-mode and what follows it shape ImageNet's files alone.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from harness.data.prepare import ImageOptions, prepare
from harness.data.spec import DATASETS


@dataclass(frozen=True)
class Arguments:
    """What to prepare, from what, to where."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME", help=f"One of: {', '.join(DATASETS)}.")]
    source: Annotated[str | None, tyro.conf.arg(metavar="SOURCE")] = None
    """Where the raw images are: a directory that holds IDX files, train/<class>/<image> and val/<class>/<image>,
    parquet files, or what datasets saved; or a data set's name on the Hugging Face hub. If not given: scikit-learn for
    digits, Debian's dataset-fashion-mnist in /usr/share/datasets/fashion-mnist, ILSVRC/imagenet-1k on the hub."""
    out: Path = Path("data")
    """Directory of all data sets; files go to OUT/NAME."""
    images: Annotated[ImageOptions, tyro.conf.arg(name="")] = field(default_factory=ImageOptions)
    """How ImageNet's images are stored."""
    num_workers: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Encoding threads; all available cores if not given. The files do not depend on it."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace finished splits."""


def main(arguments: Arguments) -> None:
    """Prepare both splits and say where they are."""
    images = arguments.images if arguments.images != ImageOptions() else None
    for manifest in prepare(
        arguments.name, arguments.out, arguments.source, images, arguments.num_workers, arguments.overwrite
    ):
        content = manifest.content_digest[:16]
        print(f"{manifest.name} {manifest.split}: {manifest.num_samples} images, content {content}")
    print(f"in {arguments.out / arguments.name}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command again")
