"""Prepare a data set: write its images as FFCV files, with a content digest, and as tensors.

$ python tools/prepare_data.py digits
$ python tools/prepare_data.py cifar100 --source cifar-100-binary.tar.gz
$ python tools/prepare_data.py imagenet --source DIRECTORY --max-resolution 400
$ python tools/prepare_data.py --name flowers --source FOLDER --size 64

Each data set has these sources besides the general ones:

digits          scikit-learn (default)
fashion_mnist*  directory of IDX files; default: Debian's /usr/share/datasets/fashion-mnist
cifar10         binary archive or its directory; default: uoft-cs/cifar10 on the hub
cifar100        binary archive or its directory; default: uoft-cs/cifar100 on the hub
tiny_imagenet   zip or its directory; default: zh-plus/tiny-imagenet on the hub
imagenet        directory with both tars and the development kit, or with train/<wnid>/<image> and val/<image>;
                default: ILSVRC/imagenet-1k on the hub

Any other NAME, with --size, prepares a data set of your own. Its source is an image folder (train/<class>/<image> and
test/ or val/, or <class>/<image>), parquet files, a directory of `save_to_disk`, or a name on the hub. Images may have
any size: the centre square is resized to --size. Classes, mean and standard deviation come from the training images.
Without a test split in the source, --test-split makes one. A source FILE.py:build is a function of yours that returns
a map-style dataset; its data are read by --data.loader torch (see docs/how-to-your-own.md).

The tool reads archives without unpacking them. It refuses pickled archives. It keeps finished splits, and starts
unfinished ones again. --write-mode and the options below it apply to imagenet and to --augmentation resized-crop.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from harness.cli.errors import clear_errors
from harness.cli.options import parse
from harness.common.escape import for_terminal
from harness.common.program import command, recipe_names
from harness.data.own import OwnOptions, spec_of
from harness.data.prepare import ImageOptions, prepare
from harness.data.spec import DATASETS


@dataclass(frozen=True)
class PrepareOptions:
    """Data set, source and directory."""

    first: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(name="name", metavar="NAME", help=f"One of: {', '.join(DATASETS)}; or as --name."),
    ] = ""
    name: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """The same as NAME. A new name is a data set of your own: letters, digits, _ and -."""
    source: Annotated[str | None, tyro.conf.arg(metavar="SOURCE")] = None
    """Source of the raw images: see above. Every data set also accepts a directory with train/<class>/<image> and
    val/<class>/<image>, with parquet files or from save_to_disk of Hugging Face datasets, or a name on the hub."""
    image_column: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Column of the images in parquet files and data sets of the hub. Default: img for CIFAR, else image."""
    label_column: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Column of the labels. Default: fine_label for cifar100, else label."""
    allow_missing_classes: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Accept a source that lacks classes, such as a small sample. Its results do not compare with published ones."""
    own: Annotated[OwnOptions, tyro.conf.arg(name="")] = field(default_factory=OwnOptions)
    """A data set of your own."""
    out: Path = Path("data")
    """Directory of all data sets. The files are written to OUT/NAME."""
    images: Annotated[ImageOptions, tyro.conf.arg(name="")] = field(default_factory=ImageOptions)
    """How images of varying size are stored: ImageNet's, and those of --augmentation resized-crop."""
    num_workers: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Encoding threads. The files do not depend on their number. Default: all available cores."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace finished splits."""

    @property
    def chosen(self) -> str:
        """Return the name of the data set.

        Raises:
            ValueError: No name was given, or two.
        """
        names = {name for name in (self.first, self.name) if name}
        if len(names) != 1:
            told = f"{self.first} and --name {self.name} differ" if names else "no name"
            raise ValueError(f"{told}; give one data set, such as digits, or --name NAME for one of your own")
        return names.pop()


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare a data set.

    Args:
        arguments: Words to parse. None means those of the process.
    """
    with clear_errors():
        try:
            run(parse(PrepareOptions, __doc__, arguments=arguments))
        except KeyboardInterrupt:
            sys.exit("interrupted; run the same command again")


def run(options: PrepareOptions) -> None:
    """Prepare both splits, and print their directory and the next command."""
    directory = options.out / options.chosen
    before = _changed_at(directory)
    images = options.images if options.images != ImageOptions() else None
    name = options.chosen
    manifests = prepare(
        name,
        options.out,
        options.source,
        images,
        options.num_workers,
        options.overwrite,
        image_column=options.image_column,
        label_column=options.label_column,
        allow_missing_classes=options.allow_missing_classes,
        own=options.own,
    )
    # Print one line if both splits were kept.
    if _changed_at(directory) == before:
        counts = ", ".join(f"{manifest.num_samples} images in {manifest.split}" for manifest in manifests)
        print(f"{name} is already prepared in {directory}: {counts}")
        return
    for manifest in manifests:
        content = manifest.content_digest[:16]
        print(f"{manifest.name} {manifest.split}: {manifest.num_samples} images, content {content}")
    if name not in DATASETS:
        _print_own(name, options.out)
    print(f"in {directory}")
    print(f"now run: {_next_command(options)}")


def _changed_at(directory: Path) -> dict[str, int]:
    """Return the modification time in ns of each manifest by file name."""
    return {path.name: path.stat().st_mtime_ns for path in sorted(directory.glob("*.json"))}


def _print_own(name: str, out: Path) -> None:
    """Print the measured parts of the specification of a user's own data set."""
    spec = spec_of(name, out)
    names, size = spec.raw.class_names, spec.image_size
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    print(for_terminal(f"{len(names)} classes: {', '.join(names[:5])}{more}"))
    mean, std = (" ".join(f"{value:.4f}" for value in values) for values in (spec.mean, spec.std))
    print(f"{size}×{size} pixels, channels {spec.channels}, mean {mean}, standard deviation {std}")


def _next_command(options: PrepareOptions) -> str:
    """Return the command of a search on the prepared data set."""
    name = options.chosen
    words = ["search", f"aws_{name}"]
    if words[1] not in recipe_names():
        words = ["search", "aws_fashion_mnist", "--data.name", name]
    if options.out != PrepareOptions.out:
        words += ["--data.directory", str(options.out)]
    return command(shlex.join(words))
