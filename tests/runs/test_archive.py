"""Test the reuse of finished runs, and warnings about differences."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harness.checkpoint import Checkpoint
from harness.common import machine
from harness.common.machine import cuda_facts
from harness.common.tensors import load_correct
from harness.distributed.stop import StoppedError
from harness.distributed.world import World
from harness.lineage.nodes.record import CORRECT, Parent
from harness.lineage.store import LineageStore, open_store
from harness.lineage.tracking.server import RefusedError
from harness.masks import Mask
from harness.models import build_model, partition_of
from harness.runs.archive import Archive
from harness.runs.run import RunDescription, TrainedRun
from harness.runs.state_saver import SavingInterval, StateSaver
from harness.runs.unfinished import MovedError
from harness.training.resume import TrainingState


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    torch.manual_seed(0)
    model = build_model("resnet8", num_classes=3, channels=1, image_size=8, width=2)
    template = Checkpoint.of(model, level=0, epochs=0, level_digest="0" * 64)
    store, partition = open_store(tmp_path, offline=True), partition_of("resnet8", model)
    return Archive(World(), store, partition, template, SavingInterval(0, "steps", steps_per_epoch=1))


def description(**launch: object) -> RunDescription:
    config = {"launch": {"threads": 1, "device": "cpu"} | launch}
    return RunDescription({"a": "run"}, "training", "a run", (), config, {})


def on_cuda(**facts: object) -> RunDescription:
    """Return the description of a run on a CUDA device."""
    made = description()
    made.config["hardware"] = {"cuda": facts or cuda_facts()}
    return made


def make(archive: Archive, made: list[str]):
    def once(saver: StateSaver) -> TrainedRun:
        made.append(saver.description.name)
        mask = Mask.dense(archive.template.params, archive.partition.prunable)
        return TrainedRun(archive.template, mask, saver.measured, start_digest="", layers={})

    return once


def test_a_run_is_made_once_and_comes_back_whole(archive: Archive):
    made: list[str] = []
    first, again = (archive.run_or_load(description(), make(archive, made)) for _ in range(2))
    assert made == ["a run"] and first.record == again.record
    for name, tensor in archive.template.state_dict.items():
        assert torch.equal(again.checkpoint.state_dict[name], tensor)
    assert again.mask.equal(first.mask) and again.metric("density") == 1


def test_reuse_under_other_settings_warns_once_with_the_difference(archive: Archive, capsys):
    made: list[str] = []
    archive.run_or_load(description(), make(archive, made))
    archive.run_or_load(description(), make(archive, made))
    said = capsys.readouterr().err
    assert "warning" not in said and f"loaded from {archive.store.local.directory}" in said
    for _ in range(2):
        archive.run_or_load(description(threads=2), make(archive, made))
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 1 and "'a run' is reused" in warnings[0] and "threads 1 (now 2)" in warnings[0]
    assert made == ["a run"]


def test_per_image_results_are_stored_as_a_file_if_available(archive: Archive):
    for number, correct in enumerate(({}, {"test": torch.arange(11) > 3})):

        def once(saver: StateSaver, correct: dict[str, torch.Tensor] = correct) -> TrainedRun:
            return replace(make(archive, [])(saver), correct=correct)

        described = replace(description(), determinants={"run": number})
        run = archive.run_or_load(described, once)
        assert (CORRECT in run.record.files) == bool(correct)
    held = load_correct(archive.store.local.open_file(run.key, CORRECT))
    assert torch.equal(held["test"], correct["test"])


CUDA_FACTS = [
    ("num_devices", torch.cuda, "device_count", lambda: 8, "0", "8"),
    ("cuda", torch.version, "cuda", "99.1", torch.version.cuda, "99.1"),
    ("cudnn", torch.backends.cudnn, "version", lambda: 99, torch.backends.cudnn.version(), "99"),
    ("nccl", torch.cuda.nccl, "version", lambda: (9, 8, 7), ".".join(map(str, torch.cuda.nccl.version())), "9.8.7"),
    ("driver", machine, "_driver_version", lambda: "570.1", "1.0", "570.1"),
    ("matmul_allow_tf32", torch.backends.cuda, "matmul", SimpleNamespace(allow_tf32=True), "False", "True"),
    ("float32_matmul_precision", torch, "get_float32_matmul_precision", lambda: "high", "highest", "high"),
    ("cudnn_allow_tf32", torch.backends.cudnn, "allow_tf32", False, "True", "False"),
    ("cudnn_benchmark", torch.backends.cudnn, "benchmark", False, "True", "False"),  # World enables it
    ("cudnn_deterministic", torch.backends.cudnn, "deterministic", True, "False", "True"),
]


@pytest.mark.parametrize(
    ("fact", "owner", "name", "value", "then", "now"), CUDA_FACTS, ids=[row[0] for row in CUDA_FACTS]
)
def test_what_may_change_bits_on_cuda_is_named_on_reuse_and_on_resume(
    archive: Archive, monkeypatch, capsys, fact, owner, name, value, then, now
):
    # Phase: simulate the CUDA facts of the first launch
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(machine, "_driver_version", lambda: "1.0")

    def stops(saver: StateSaver) -> TrainedRun:
        saver.save(TrainingState(0, 1, 0.0, {}, {}))
        raise StoppedError("by the test")

    def resumes(saver: StateSaver) -> TrainedRun:
        assert saver.load() is not None
        return make(archive, [])(saver)

    def warnings() -> list[str]:
        return [line for line in capsys.readouterr().err.splitlines() if "warning" in line]

    # Phase: interrupt a run, change one fact, resume the run, then reuse it under the old fact
    with pytest.raises(StoppedError):
        archive.run_or_load(on_cuda(), stops)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, value)
        archive.run_or_load(on_cuda(), resumes)
        (resumed,) = warnings()
        archive.run_or_load(on_cuda(), stops)
        assert warnings() == []  # the run was finished under the present facts
    archive.run_or_load(on_cuda(), stops)
    (reused,) = warnings()
    assert "'a run' was started with" in resumed and f"{fact} {then} (now {now})" in resumed
    assert "'a run' is reused" in reused and f"{fact} {now} (now {then})" in reused


def test_facts_missing_on_either_side_are_no_difference(archive: Archive, capsys):
    """Reuse records that lack some facts about CUDA.

    Older versions did not store them, and some machines cannot determine them.
    """
    archive.run_or_load(description(), make(archive, []))
    archive.run_or_load(on_cuda(driver="1.0", nccl=None), make(archive, []))
    assert "warning" not in capsys.readouterr().err
    other = RunDescription({"b": "run"}, "training", "another", (), on_cuda(driver=None, nccl="2.1").config, {})
    archive.run_or_load(other, make(archive, []))
    other.config["hardware"]["cuda"] = {"driver": "2.0", "nccl": None}
    archive.run_or_load(other, make(archive, []))
    assert "warning" not in capsys.readouterr().err


def test_the_server_is_not_queried_for_children_of_runs_of_this_launch(archive: Archive, monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr(LineageStore, "find", lambda self, key: asked.append(key))
    monkeypatch.setattr(
        archive.store, "tracking_uri", "http://localhost:1"
    )  # a store without a server is never queried
    made: list[str] = []
    first = archive.run_or_load(description(), make(archive, made))
    assert set(asked) == {first.key}
    child = RunDescription({"a": "child"}, "training", "child", (Parent(first.key, "masked-by"),), {}, {})
    archive.run_or_load(child, make(archive, made))
    assert set(asked) == {first.key} and made == ["a run", "child"]


def full_disk(*arguments: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_state_that_cannot_be_saved_is_a_warning_until_the_launch_is_told_to_stop(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def train(saver: StateSaver) -> TrainedRun:
        # Phase: save one state, then fail while the disk is full.
        saver.save(TrainingState(0, 1, 0.0, {"w": torch.ones(2)}, {}))
        with monkeypatch.context() as patch:
            patch.setattr("harness.runs.unfinished.write_atomically", full_disk)
            for step in (2, 3):
                saver.save(TrainingState(0, step, 0.0, {"w": torch.zeros(2)}, {}))
            warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
            assert len(warnings) == 1 and "cannot save the state of 'a run'" in warnings[0]
            assert "needs" in warnings[0] and "The training continues" in warnings[0]
            with pytest.raises(OSError, match="cannot save the state.*The earlier state is intact.*start the same"):
                saver.save(TrainingState(0, 4, 0.0, {}, {}, is_last=True))

        # Phase: the earlier state is whole, and the next one is saved.
        state = saver.load()
        assert state is not None and state.step == 1 and torch.equal(state.tensors["w"], torch.ones(2))
        saver.save(TrainingState(0, 5, 0.0, {"w": torch.ones(2)}, {}))
        state = saver.load()
        assert state is not None and state.step == 5
        return make(archive, [])(saver)

    archive.run_or_load(description(), train)


def test_runs_that_are_moved_during_a_training_are_not_made_anew_at_the_old_path(archive: Archive, tmp_path: Path):
    runs = tmp_path / "runs"
    archive.store.local.directory = runs

    def moves(saver: StateSaver) -> TrainedRun:
        assert not saver.due(0, 1)
        runs.rename(tmp_path / "moved")
        saver.unfinished.is_gone = True  # as the heartbeat notices
        assert saver.due(0, 1)
        return make(archive, [])(saver)

    with pytest.raises(MovedError, match=f"{runs} is gone"):
        archive.run_or_load(description(), moves)
    assert not runs.exists()


def test_runs_that_are_moved_between_two_runs_do_not_come_back_at_the_old_path(archive: Archive, tmp_path: Path):
    runs = tmp_path / "runs"
    archive.store.local.directory = runs
    first = archive.run_or_load(description(), make(archive, []))
    runs.rename(tmp_path / "moved")
    child = RunDescription({"a": "child"}, "training", "child", (Parent(first.key, "masked-by"),), {}, {})
    made: list[str] = []
    with pytest.raises(MovedError, match=f"{runs} is gone"):
        archive.run_or_load(child, make(archive, made))
    with pytest.raises(MovedError, match=f"{runs} is gone"):  # a comparison has no claim
        archive.commit(archive.record(child), child.determinants, lambda directory: None)
    assert not made and not runs.exists()


@pytest.mark.parametrize("error", [ConnectionError("busy"), RefusedError("refused")], ids=repr)
@pytest.mark.parametrize("away", [False, True])
def test_an_unknown_run_is_not_made_again_at_the_start_but_later(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, away: bool
):
    def fails(self: LineageStore, key: str) -> None:
        raise error

    made: list[str] = []
    monkeypatch.setattr(LineageStore, "find", fails)
    monkeypatch.setattr(archive.delivery, "send", lambda key: None)
    monkeypatch.setattr(archive.store, "tracking_uri", "http://localhost:1")
    archive.delivery.away = away
    # Phase: nothing is made yet, so this is an error.
    with pytest.raises(type(error), match=f"{error}.*--offline"):
        archive.run_or_load(description(), make(archive, made))
    assert made == []

    # Phase: this launch has made a run, so the training continues.
    archive._made_here.add("another")
    archive.run_or_load(description(), make(archive, made))
    assert made == ["a run"]
    assert away or f"{error}; {description().key[:16]}… is searched among local runs only" in capsys.readouterr().err
