"""Test that bad input is refused and every altered byte detected."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import harness.experiment.trainer
from harness.cli.launch import launch, launch_ticket
from harness.config import DataConfig, ModelConfig, OptimConfig, Schedule, SearchConfig, TicketConfig
from harness.data import open_data
from harness.data.prepare import prepare
from harness.experiment.final import Trial, final_training
from harness.experiment.search import search
from harness.lineage.nodes.local_files import LocalNodes
from tests.recipes.bad_inputs import BAD_INPUTS, Bad, Place
from tests.recipes.launching import REPOSITORY


def settings(place: Path, num_levels: int) -> SearchConfig:
    return SearchConfig(
        data=DataConfig("digits", directory=place / "data", loader="memory"),
        model=ModelConfig("resnet8", width=2),
        optim=OptimConfig(name="sgd", lr=0.1),
        warmup_epochs=0,
        level_epochs=1,
        num_levels=num_levels,
        final=Schedule(1, "constant"),
        global_batch_size=64,
        runs=place / "runs",
        offline=True,
    )


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Place:
    """Return a working directory with a finished search of one pruning level."""
    where = tmp_path_factory.mktemp("good")
    prepare("digits", where / "data")
    with launch(settings(where, 1)) as experiment:
        return Place(where, search(experiment).ticket.key)


@pytest.fixture
def no_training(monkeypatch) -> None:
    """Fail the test if a training begins."""

    def begun(*args: object, **kwargs: object) -> None:
        raise AssertionError("a training began")

    monkeypatch.setattr(harness.experiment.trainer, "train", begun)


def go_on(bad: Bad, place: Place) -> None:
    """Continue the search or train from its level, with the bad input."""
    if bad.kind == "ticket":
        (root,) = (place.directory / "runs").glob("search-*")
        ticket = root.name.partition("-")[2] if bad.ticket == "search" else bad.ticket or place.key
        config = TicketConfig(
            ticket, runs=place.directory / "runs", data_directory=place.directory / "data", offline=True
        )
        config = replace(config, **bad.options)
        with launch_ticket(config) as (experiment, node):
            trial = Trial(config.kind, config.init_seed, config.sgd_seed)
            final_training(experiment, trial, node, same_init=config.same_init)
        return
    config = settings(place.directory, 2)
    options = dict(bad.options)
    if "model" in options:
        options["model"] = ModelConfig(*options["model"])
    data = {name: options.pop(key) for name, key in (("name", "data"), ("directory", "directory")) if key in options}
    options["data"] = replace(config.data, loader=bad.loader, **data)
    with launch(replace(config, **options)) as experiment:
        search(experiment)


@pytest.mark.parametrize("bad", BAD_INPUTS, ids=lambda bad: f"{bad.kind}: {bad.name}")
def test_bad_input_is_refused_before_any_step(good: Place, tmp_path: Path, monkeypatch, no_training, bad: Bad):
    shutil.copytree(good.directory, tmp_path / "place")
    place = replace(good, directory=tmp_path / "place")
    bad.spoil(place)
    for name, value in bad.environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises((ValueError, LookupError, OSError), match=f"(?s){bad.words}") as caught:
        go_on(bad, place)
    assert not isinstance(caught.value, KeyError)


def test_undamaged_input_reaches_the_training(good: Place, tmp_path: Path, no_training):
    """Check that the same launches reach the training without the damage."""
    for number, bad in enumerate(
        (Bad("nothing", lambda place: None, "", ""), Bad("nothing", lambda place: None, "", "ticket"))
    ):
        shutil.copytree(good.directory, tmp_path / str(number))
        with pytest.raises(AssertionError, match="a training began"):
            go_on(bad, replace(good, directory=tmp_path / str(number)))


POSITIONS = 100


@pytest.mark.long
def test_every_altered_byte_is_found(good: Place, tmp_path: Path):
    """Alter single bytes of a level's files and of the data files."""
    shutil.copytree(good.directory, tmp_path / "place")
    place, generator = replace(good, directory=tmp_path / "place"), random.Random(7)
    nodes = LocalNodes(place.directory / "runs")
    names = [*nodes.load(place.key).files, "record.json", "SHA256SUMS"]

    def check_node() -> None:
        for name in names[:-2]:
            nodes.open_file(place.key, name)

    tried = Counter({name: _alter(place.node / name, check_node, generator) for name in names})
    for loader, ending in (("ffcv", "beton"), ("memory", "safetensors")):
        for split in ("train", "test"):
            name = f"{split}.{ending}"
            check = lambda loader=loader: open_data("digits", place.directory / "data", loader)  # noqa: E731
            tried[name] = _alter(place.data / name, check, generator)
    print(f"{sum(tried.values())} altered bytes found of {sum(tried.values())}: {dict(tried)}")
    assert f"| {sum(tried.values())} | {sum(tried.values())} |" in (REPOSITORY / "docs" / "reliability.md").read_text()


def _alter(path: Path, check: Callable[[], object], generator: random.Random) -> int:
    """Alter one random byte at a time, and expect an error.

    It must be a ValueError that names a file.

    Returns:
        The number of altered bytes.
    """
    whole = path.read_bytes()
    check()
    for _ in range(POSITIONS):
        place, value = generator.randrange(len(whole)), generator.randrange(1, 256)
        data = bytearray(whole)
        data[place] ^= value
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"SHA256SUMS|\.json|\.safetensors|\.beton|allowed are"):
            check()
    path.write_bytes(whole)
    os.utime(path)
    check()
    return POSITIONS


def test_the_documentation_states_the_number_of_bad_inputs():
    text = (REPOSITORY / "docs" / "reliability.md").read_text()
    assert f"| {len(BAD_INPUTS)} | {len(BAD_INPUTS)} |" in text
    for kind, count in Counter(bad.kind for bad in BAD_INPUTS).items():
        assert f"{kind} ({count})" in text, (kind, count)
