"""Provide an experiment for tiny searches on the digits in this process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from harness.data import DATASETS
from harness.data.prepare import prepare
from harness.experiment.experiment import Experiment
from tests.pruning.searching import open_experiment


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Experiment]:
    """Open one launch for all tests. `search(experiment.using(method, …))` searches with a method."""
    yield from open_experiment(tmp_path_factory.mktemp("methods"))


@pytest.fixture(scope="session")
def other_data(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Experiment]:
    """Return an experiment on another data set: noise in twelve classes, with the size of the digits."""
    images, random = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for split, number in (("train", 22), ("test", 2)):
        for label in range(12):
            (folder := images / split / f"{label:02d}").mkdir(parents=True)
            for image in range(number):
                Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{image}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "noise_12", replace(DATASETS["digits"], name="noise_12", num_classes=12))
        own = experiment.config
        prepare("noise_12", own.data.directory, str(images))
        config = replace(own, method="lrr", data=replace(own.data, name="noise_12"))
        yield Experiment(experiment.world, experiment.store, config)
