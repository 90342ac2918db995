"""Prepare a data set: raw images become FFCV files with a content digest, and tensors for the in-memory loader.

For example `digits`; `cifar100 --source cifar-100-binary.tar.gz`; `imagenet --source DIRECTORY --max-resolution 400`.
Archives are read as they were downloaded; nothing is unpacked, and pickled ones are refused. A finished split is kept,
an unfinished one begun again. --write-mode and what follows it shape ImageNet's files alone.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from harness.cli.options import parse
from harness.data.prepare import ImageOptions, prepare
from harness.data.spec import DATASETS


@dataclass(frozen=True)
class PrepareOptions:
    """Which data set to prepare, from which source, to which directory."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME", help=f"One of: {', '.join(DATASETS)}.")]
    source: Annotated[str | None, tyro.conf.arg(metavar="SOURCE")] = None
    """Where the raw images are: CIFAR's binary archive or Tiny-ImageNet's zip, or the directory it holds; a directory
    with ImageNet's two tars and its development kit, or with train/<wnid>/<image> and val/<image>; one with IDX files,
    train/<class>/<image> and val/<class>/<image>, parquet files, or what datasets saved; or a data set's name on the
    Hugging Face hub. If not given: scikit-learn for digits, Debian's dataset-fashion-mnist in
    /usr/share/datasets/fashion-mnist, and on the hub uoft-cs/cifar10, uoft-cs/cifar100, zh-plus/tiny-imagenet and
    ILSVRC/imagenet-1k."""
    image_column: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Column of the images in parquet files and data sets of the hub. Default: img for CIFAR, else image."""
    label_column: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Column of the labels. Default: fine_label for cifar100, else label."""
    allow_missing_classes: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Accept a source that lacks classes, such as a small sample to try things out. Results do not compare with those
    of the published data set."""
    out: Path = Path("data")
    """Directory of all data sets; files go to OUT/NAME."""
    images: Annotated[ImageOptions, tyro.conf.arg(name="")] = field(default_factory=ImageOptions)
    """How ImageNet's images are stored."""
    num_workers: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Encoding threads; all available cores if not given. The files do not depend on it."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace finished splits."""


def main(options: PrepareOptions) -> None:
    """Prepare both splits and say where they are."""
    images = options.images if options.images != ImageOptions() else None
    manifests = prepare(
        options.name,
        options.out,
        options.source,
        images,
        options.num_workers,
        options.overwrite,
        image_column=options.image_column,
        label_column=options.label_column,
        allow_missing_classes=options.allow_missing_classes,
    )
    for manifest in manifests:
        content = manifest.content_digest[:16]
        print(f"{manifest.name} {manifest.split}: {manifest.num_samples} images, content {content}")
    print(f"in {options.out / options.name}")


if __name__ == "__main__":
    try:
        main(parse(PrepareOptions, __doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command again")
