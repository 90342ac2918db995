"""Fixtures: working directories with prepared data and finished searches."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.data.archive_files import (
    ImageNetFiles,
    cifar10_archive,
    cifar100_archive,
    tiny_imagenet_files,
    tiny_imagenet_zip,
    write_tree,
)
from tests.data.photo_files import photo_crops
from tests.made_once import made_once
from tests.recipes.launching import EMPTY_STORE, LIGHT, TINY, elsewhere, recipe, run_ids, tool


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, empty_store) -> Path:
    """Return a directory with the prepared digits and an empty MLflow database."""

    def make(where: Path) -> None:
        tool(where, "prepare_data.py", "digits", "--out", "data", cold=True)
        shutil.copy(empty_store, where / EMPTY_STORE)

    return made_once(tmp_path_factory, "prepared", make)


@pytest.fixture(scope="session")
def pristine(tmp_path_factory, prepared) -> tuple[Path, list[str]]:
    """Return a directory with a tiny finished search, and its run IDs.

    All test processes share it, so tests must only read it.
    """

    def make(where: Path) -> None:
        elsewhere(prepared, where, tables=False)
        ids = run_ids(recipe(where, "aws_digits.py", *TINY, processes=1))
        (where / "run_ids.json").write_text(json.dumps(ids))

    where = made_once(tmp_path_factory, "searched", make)
    return where, json.loads((where / "run_ids.json").read_text())


@pytest.fixture(scope="session")
def searched(tmp_path_factory, prepared, pristine) -> tuple[Path, list[str]]:
    """Return a writable copy of `pristine`."""
    where = tmp_path_factory.mktemp("user") / "searched"
    shutil.copytree(pristine[0], where, symlinks=True)
    return where, pristine[1]


@pytest.fixture(scope="session")
def by_two(tmp_path_factory, prepared) -> tuple[Path, list[str]]:
    """Return the same search made by two processes.

    They created their own database.
    """

    def make(where: Path) -> None:
        elsewhere(prepared, where, tables=False)
        ids = run_ids(recipe(where, "aws_digits.py", *TINY, *LIGHT, processes=2))
        (where / "run_ids.json").write_text(json.dumps(ids))

    where = made_once(tmp_path_factory, "searched_by_two", make)
    return where, json.loads((where / "run_ids.json").read_text())


@pytest.fixture(scope="session")
def full_size(tmp_path_factory) -> Path:
    """Return a directory with a few images of each full-size data set.

    They are prepared from archives of the original format. Each data set has 4 training and 3 test images; CIFAR-10 has
    5 and 2.
    """
    return made_once(tmp_path_factory, "full_size", _prepare_full_size)


def _prepare_full_size(home: Path) -> None:
    small, tiny, large = (photo_crops(7, *size) for size in ((32, 32), (64, 64), (375, 500)))
    archive = cifar10_archive(home / "cifar-10-binary.tar.gz", np.stack(small[:5]), np.stack(small[5:]))
    tool(home, "prepare_data.py", "cifar10", "--source", archive.name, "--out", "data", "--allow-missing-classes")
    archive = cifar100_archive(home / "cifar-100-binary.tar.gz", np.stack(small[:4]), np.stack(small[4:]))
    tool(home, "prepare_data.py", "cifar100", "--source", archive.name, "--out", "data", "--allow-missing-classes")
    archive = tiny_imagenet_zip(home / "tiny-imagenet-200.zip", tiny_imagenet_files(tiny[:4], tiny[4:]))
    tool(home, "prepare_data.py", "tiny_imagenet", "--source", archive.name, "--out", "data", "--allow-missing-classes")
    files = ImageNetFiles(large[:4], large[4:])
    everything = files.train_tar() | files.val_tar() | files.labels("ILSVRC2012_devkit_t12.tar.gz")
    write_tree(home / "imagenet", everything)
    tool(home, "prepare_data.py", "imagenet", "--source", "./imagenet", "--out", "data", "--allow-missing-classes")
