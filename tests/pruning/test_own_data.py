"""Test searches, final trainings, comparisons, verification and loading with data sets of the user's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

import harness
from harness.cli.launch import launch_ticket
from harness.config import ComparisonConfig, DataConfig, ModelConfig, OptimConfig, Schedule, SearchConfig, TicketConfig
from harness.data.own import OwnOptions
from harness.data.prepare import prepare
from harness.distributed import world as world_module
from harness.distributed.world import World
from harness.experiment.comparison import compare
from harness.experiment.experiment import Experiment
from harness.experiment.final import Trial, final_training
from harness.experiment.search import search
from harness.lineage.proof import verify
from harness.lineage.store import open_store
from harness.runs.run import FinishedRun

FILE = """
import numpy as np
import torch
from torchvision.transforms import v2


def build(split):
    images = np.random.default_rng(split == "test").integers(0, 256, (32, 14, 14, 3), dtype=np.uint8)
    return [(torch.from_numpy(image).permute(2, 0, 1), index % 3) for index, image in enumerate(images)]


def transforms(split, size):
    return v2.RandomCrop(size) if split == "train" else v2.CenterCrop(size)
"""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with patch.object(world_module, "_has_accelerate", lambda: False):
        world = World("no")
    yield world
    world.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with two prepared data sets: `folder`, and `by_file` of a Python file."""
    place, random = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    for index in range(45):
        (folder := place / "raw" / "abc"[index % 3]).mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (12 + index % 5, 14, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    prepare("folder", place / "data", str(place / "raw"), own=OwnOptions(size=12))
    (place / "mine.py").write_text(FILE)
    prepare("by_file", place / "data", f"{place / 'mine.py'}:build", own=OwnOptions(size=12))
    return place


def settings(place: Path, name: str, loader: str, workers: int = 1) -> SearchConfig:
    return SearchConfig(
        data=DataConfig(name, directory=place / "data", loader=loader, num_workers=workers),  # type: ignore[arg-type]
        model=ModelConfig("resnet8", width=2),
        optim=OptimConfig(),
        final=Schedule(1, "step"),
        warmup_epochs=1,
        level_epochs=1,
        num_levels=2,
        global_batch_size=16,
        runs=place / f"runs_{name}",
    )


def opened(world: World, config: SearchConfig) -> Experiment:
    return Experiment(world, open_store(config.runs, offline=True), config)


@pytest.mark.parametrize(("name", "loader"), [("folder", "memory"), ("by_file", "torch")])
def test_a_search_a_ticket_and_a_comparison(world: World, place: Path, name: str, loader: str) -> None:
    # Phase: search, two final trainings, and their stability
    experiment = opened(world, settings(place, name, loader))
    found = search(experiment)
    pair = [final_training(experiment, Trial("signed_mask", 2, seed), found.ticket) for seed in (1, 2)]
    assert compare(experiment, *pair, "stability", ComparisonConfig(num_alphas=3, bn_images=16)) is not None
    record = pair[0].record
    assert record is not None and record.tags["data"] == name

    # Phase: the torch loader with workers gives the same runs in another directory, where none can be reused
    other = search(opened(world, replace(settings(place, name, "torch", 2), runs=place / f"runs_again_{name}")))
    for left, right in zip(found.levels, other.levels, strict=True):
        assert left.key == right.key
        assert all(torch.equal(value, right.checkpoint.params[key]) for key, value in left.checkpoint.params.items())

    # Phase: reading, verifying and loading need no data
    with hidden(place / "data"):
        found_problems = verify(open_store(experiment.config.runs, offline=True))
        assert found_problems.problems == []
        model = harness.load_network(pair[0].key, local_dir=experiment.config.runs)
        assert model(torch.zeros(2, 3, 12, 12)).shape == (2, 3)
        assert harness.load_signed_mask(found.ticket.key, local_dir=experiment.config.runs).signs
        with pytest.raises(ValueError, match=f"unknown data set '{name}'.*has none of your own; to prepare"):
            opened(world, experiment.config)
    assert verify(open_store(experiment.config.runs, offline=True), pair[0].key).problems == []


class hidden:  # noqa: N801
    """Move a directory away within the block."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.other = directory, directory.with_name("hidden")

    def __enter__(self) -> None:
        self.directory.rename(self.other)

    def __exit__(self, *error: object) -> None:
        self.other.rename(self.directory)


def _ticket(world: World, config: SearchConfig) -> FinishedRun:
    return search(opened(world, config)).ticket


@pytest.mark.parametrize("classes", [3, 4])
def test_a_ticket_asks_for_the_data_of_its_digest(world: World, place: Path, tmp_path: Path, classes: int) -> None:
    """The data set is prepared again from other images, also with another class."""
    shutil.copytree(place / "data" / "folder", tmp_path / "data" / "folder")
    config = replace(settings(tmp_path, "folder", "memory"), runs=tmp_path / "runs", num_levels=1)
    ticket = _ticket(world, config)
    raw = shutil.copytree(place / "raw", tmp_path / "raw")
    for number in range(8):
        (raw / "abcd"[classes - 1]).mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(raw / "abcd"[classes - 1] / f"new{number}.png")
    prepare("folder", tmp_path / "data", str(raw), overwrite=True, own=OwnOptions(size=12))
    assert ticket.record is not None
    digest = ticket.record.tags["data_digest"][:12]
    options = TicketConfig(ticket.key, runs=config.runs, offline=True)
    message = f"was made from data {digest}…, but .*data/folder has [0-9a-f]{{12}}…"
    without_accelerate = patch.object(world_module, "_has_accelerate", lambda: False)
    with without_accelerate, pytest.raises(ValueError, match=message), launch_ticket(options):
        pass


def test_transforms_and_version_of_torchvision_are_in_the_key(world: World, place: Path) -> None:
    config = settings(place, "by_file", "torch")
    own = opened(world, config).common.determinants["spec"]["augmentation"]
    assert own.keys() == {"sha256", "torchvision"}
    assert own["sha256"] == json.loads((place / "data" / "by_file" / "spec.json").read_text())["augmentation"]["sha256"]
    with patch("importlib.metadata.version", lambda name: "0.1+cpu"):
        assert opened(world, config).common.determinants["spec"]["augmentation"]["torchvision"] == "0.1"
