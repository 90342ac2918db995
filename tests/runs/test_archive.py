"""Finished runs are made once; what differs when they are reused is said; nothing made is lost to a server."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.checkpoint import Checkpoint
from harness.lineage.record import Parent
from harness.lineage.store import LineageStore, open_store
from harness.masks import Mask
from harness.models import build_model, partition_of
from harness.runs.archive import Archive
from harness.runs.keeper import RunKeeper, Saving
from harness.runs.node import Draft
from harness.training.world import World


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    torch.manual_seed(0)
    model = build_model("resnet8", num_classes=3, channels=1, image_size=8, width=2)
    template = Checkpoint.of(model, level=0, epochs=0, level_digest="0" * 64)
    store, partition = open_store(tmp_path, offline=True), partition_of("resnet8", model)
    return Archive(World(), store, partition, template, Saving(0, "steps", steps_per_epoch=1))


def draft(**launch: object) -> Draft:
    config = {"launch": {"threads": 1, "device": "cpu"} | launch}
    return Draft({"a": "run"}, "training", "a run", (), config, {}, level=0, epochs_before=0)


def make(archive: Archive, made: list[str]):
    def once(draft: Draft, keeper: RunKeeper) -> tuple[Checkpoint, Mask]:
        made.append(draft.name)
        return archive.template, Mask.dense(archive.template.params, archive.partition.prunable)

    return once


def test_a_run_is_made_once_and_comes_back_whole(archive: Archive):
    made: list[str] = []
    first, again = (archive.once(draft(), make(archive, made)) for _ in range(2))
    assert made == ["a run"] and first.record == again.record
    for name, tensor in archive.template.state_dict.items():
        assert torch.equal(again.checkpoint.state_dict[name], tensor)
    assert again.mask.equal(first.mask) and again.metric("density") == 1


def test_reuse_under_other_circumstances_is_said_once_by_name(archive: Archive, capsys):
    made: list[str] = []
    archive.once(draft(), make(archive, made))
    archive.once(draft(), make(archive, made))
    said = capsys.readouterr().err
    assert "warning" not in said and f"'a run' is finished: taken from {archive.store.local.directory}" in said
    for _ in range(2):
        archive.once(draft(threads=2), make(archive, made))
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 1 and "'a run' is reused" in warnings[0] and "threads 1 (now 2)" in warnings[0]
    assert made == ["a run"]


def test_no_server_is_asked_about_what_is_made_from_runs_of_this_launch(archive: Archive, monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr(LineageStore, "find", lambda self, key: asked.append(key))
    made: list[str] = []
    first = archive.once(draft(), make(archive, made))
    assert set(asked) == {first.key}
    child = Draft({"a": "child"}, "training", "child", (Parent(first.key, "masked-by"),), {}, {}, 0, 0)
    archive.once(child, make(archive, made))
    assert set(asked) == {first.key} and made == ["a run", "child"]
