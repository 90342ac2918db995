"""A user's working directory with data in it, and a finished search."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

# for launching and archive_files: pytest's importlib mode adds no directory
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "data")]

from archive_files import (  # noqa: E402
    ImageNetFiles,
    cifar10_archive,
    cifar100_archive,
    tiny_imagenet_files,
    tiny_imagenet_zip,
    write_tree,
)
from launching import TINY, recipe, run_ids, tool  # noqa: E402
from photo_files import photo_crops  # noqa: E402


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """A directory with the digits in it."""
    where = tmp_path_factory.mktemp("user")
    tool(where, "prepare_data.py", "digits", "--out", "data")
    return where


@pytest.fixture(scope="session")
def searched(prepared) -> tuple[Path, list[str]]:
    """…and a finished tiny search in it."""
    return prepared, run_ids(recipe(prepared, "aws_digits.py", *TINY, processes=1))


@pytest.fixture(scope="session")
def full_size(tmp_path_factory) -> Path:
    """A directory with 4 + 3 images (5 + 2 of CIFAR-10) of each data set, prepared from its own archives."""
    home = tmp_path_factory.mktemp("full_size")
    small, tiny, large = (photo_crops(7, *size) for size in ((32, 32), (64, 64), (375, 500)))
    archive = cifar10_archive(home / "cifar-10-binary.tar.gz", np.stack(small[:5]), np.stack(small[5:]))
    tool(home, "prepare_data.py", "cifar10", "--source", archive.name, "--out", "data")
    archive = cifar100_archive(home / "cifar-100-binary.tar.gz", np.stack(small[:4]), np.stack(small[4:]))
    tool(home, "prepare_data.py", "cifar100", "--source", archive.name, "--out", "data")
    archive = tiny_imagenet_zip(home / "tiny-imagenet-200.zip", tiny_imagenet_files(tiny[:4], tiny[4:]))
    tool(home, "prepare_data.py", "tiny_imagenet", "--source", archive.name, "--out", "data")
    files = ImageNetFiles(large[:4], large[4:])
    everything = files.train_tar() | files.val_tar() | files.labels("ILSVRC2012_devkit_t12.tar.gz")
    write_tree(home / "imagenet", everything)
    tool(home, "prepare_data.py", "imagenet", "--source", "./imagenet", "--out", "data")
    return home
