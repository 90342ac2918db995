"""Test the messages of a launch that resumes or reuses runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.cli.launch import launch
from harness.config import DataConfig, ModelConfig, OptimConfig, Schedule, SearchConfig
from harness.data.prepare import prepare
from harness.distributed.stop import StoppedError
from harness.distributed.world import StopRequest, World
from harness.experiment.search import search
from harness.lineage.nodes.code import code_version

pytestmark = pytest.mark.long


LOOKS = 7
"""Number of checks for a stop request before the request comes. An epoch has 20 steps."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    where = tmp_path_factory.mktemp("data")
    prepare("digits", where)
    return where


def settings(data: Path, runs: Path, **changes: object) -> SearchConfig:
    config = SearchConfig(
        data=DataConfig("digits", directory=data, loader="memory"),
        model=ModelConfig("resnet8", width=2),
        optim=OptimConfig(name="sgd", lr=0.1),
        warmup_epochs=1,
        level_epochs=1,
        num_levels=0,
        final=Schedule(1, "constant"),
        global_batch_size=64,
        checkpoint_every=1,
        checkpoint_unit="steps",
        runs=runs,
        offline=True,
    )
    return replace(config, **changes)


def levels(config: SearchConfig) -> list[dict[str, str]]:
    """Search, and return each level's recorded code version and its checkpoint's SHA-256."""
    with launch(config) as experiment:
        found = [node.record for node in search(experiment).levels if node.record]
    return [record.code | {"checkpoint": record.files["checkpoint.safetensors"]} for record in found]


@pytest.fixture
def begun(data: Path, tmp_path: Path, monkeypatch, capsys) -> Iterator[SearchConfig]:
    """Yield the settings of a search that was stopped in level 0."""
    asked = iter(range(10_000))
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "reason", property(lambda self: "got SIGTERM" if next(asked) > LOOKS else None))
        config = settings(data, tmp_path / "runs")
        with pytest.raises(StoppedError, match="SIGTERM"):
            levels(config)
    assert list((tmp_path / "runs").glob(".making-level-*/state-*"))
    capsys.readouterr()
    yield config


def test_another_setting_starts_over_and_names_the_difference(begun: SearchConfig, capsys):
    levels(replace(begun, optim=replace(begun.optim, lr=0.05)))
    said = capsys.readouterr().err
    assert "is unfinished and has --optim.lr 0.1. This launch has --optim.lr 0.05." in said
    assert "resumes at" not in said


def test_other_code_resumes_with_a_warning_and_is_recorded(begun: SearchConfig, data, tmp_path, monkeypatch, capsys):
    other = code_version() | {"commit": "f" * 40}
    monkeypatch.setattr("harness.runs.archive.code_version", lambda: other)
    (level,) = levels(begun)
    said = capsys.readouterr().err
    runs = tmp_path / "runs"
    assert "resumes at epoch 0, step " in said and f"in {runs}/.making-level-" in said
    assert f"was started with commit {code_version()['commit']} (now {'f' * 40}); its numbers may differ" in said
    assert level["commit"] == "f" * 40
    (undisturbed,) = levels(settings(data, tmp_path / "undisturbed"))
    assert level["checkpoint"] == undisturbed["checkpoint"]


def test_finished_levels_say_where_they_come_from(data: Path, empty_store: Path, tmp_path: Path, monkeypatch, capsys):
    """Repeat a search with the same, then with an empty run directory.

    The latter fetches the levels from MLflow.
    """
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    here, there = (settings(data, tmp_path / name, offline=False) for name in ("here", "there"))
    first = levels(here)
    assert "is finished" not in capsys.readouterr().err
    assert levels(here) == first
    assert f"  loaded from {tmp_path}/here  key " in capsys.readouterr().err
    assert levels(there) == first
    said = capsys.readouterr().err
    assert f"  loaded from MLflow at sqlite:///{tmp_path}/mlflow.db into {tmp_path}/there" in said


class OfTwo:
    """A world of one process that reports a size of 2."""

    size = 2

    def __init__(self, world: World) -> None:
        self.world = world

    def __getattr__(self, name: str) -> object:
        return getattr(self.world, name)


def test_every_mask_is_compared_over_the_processes(data: Path, tmp_path: Path, monkeypatch):
    compared: list[str] = []
    monkeypatch.setattr(World, "require_equal", lambda self, what, hex_digest: compared.append(what))
    with launch(settings(data, tmp_path / "runs", num_levels=2)) as experiment:
        experiment.world = OfTwo(experiment.world)  # type: ignore[assignment]
        search(experiment)
    masks = [what for what in compared if what.startswith("the mask of")]
    assert masks == ["the mask of level 1", "the mask of level 2"]
