"""Finished runs are made once; what differs when they are reused is said; nothing made is lost to a server."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from harness.runs.node import Draft

from harness.checkpoint import Checkpoint
from harness.common import machine
from harness.common.machine import cuda_facts
from harness.distributed.stop import StoppedError
from harness.distributed.world import World
from harness.lineage.nodes.record import Parent
from harness.lineage.store import LineageStore, open_store
from harness.masks import Mask
from harness.models import build_model, partition_of
from harness.runs.archive import Archive
from harness.runs.state_saver import SavingInterval
from harness.training.resume import TrainingState


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    torch.manual_seed(0)
    model = build_model("resnet8", num_classes=3, channels=1, image_size=8, width=2)
    template = Checkpoint.of(model, level=0, epochs=0, level_digest="0" * 64)
    store, partition = open_store(tmp_path, offline=True), partition_of("resnet8", model)
    return Archive(World(), store, partition, template, SavingInterval(0, "steps", steps_per_epoch=1))


def draft(**launch: object) -> Draft:
    config = {"launch": {"threads": 1, "device": "cpu"} | launch}
    return Draft({"a": "run"}, "training", "a run", (), config, {}, level=0, epochs_before=0)


def on_cuda(**facts: object) -> Draft:
    """The draft of a launch that computes on a CUDA device."""
    made = draft()
    made.config["hardware"] = {"cuda": facts or cuda_facts()}
    return made


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


CUDA_FACTS = [
    ("num_devices", torch.cuda, "device_count", lambda: 8, "0", "8"),
    ("cuda", torch.version, "cuda", "99.1", torch.version.cuda, "99.1"),
    ("cudnn", torch.backends.cudnn, "version", lambda: 99, torch.backends.cudnn.version(), "99"),
    ("nccl", torch.cuda.nccl, "version", lambda: (9, 8, 7), ".".join(map(str, torch.cuda.nccl.version())), "9.8.7"),
    ("driver", machine, "_driver_version", lambda: "570.1", "1.0", "570.1"),
    ("matmul_allow_tf32", torch.backends.cuda, "matmul", SimpleNamespace(allow_tf32=True), "False", "True"),
    ("float32_matmul_precision", torch, "get_float32_matmul_precision", lambda: "high", "highest", "high"),
    ("cudnn_allow_tf32", torch.backends.cudnn, "allow_tf32", False, "True", "False"),
    ("cudnn_benchmark", torch.backends.cudnn, "benchmark", False, "True", "False"),  # World turns it on
    ("cudnn_deterministic", torch.backends.cudnn, "deterministic", True, "False", "True"),
]


@pytest.mark.parametrize(
    ("fact", "owner", "name", "value", "then", "now"), CUDA_FACTS, ids=[row[0] for row in CUDA_FACTS]
)
def test_what_may_change_bits_on_cuda_is_named_on_reuse_and_on_resume(
    archive: Archive, monkeypatch, capsys, fact, owner, name, value, then, now
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(machine, "_driver_version", lambda: "1.0")

    def stops(draft: Draft, keeper: RunKeeper) -> tuple[Checkpoint, Mask]:
        keeper.save(TrainingState(0, 1, 0.0, {}, {}))
        raise StoppedError("by the test")

    def resumes(draft: Draft, keeper: RunKeeper) -> tuple[Checkpoint, Mask]:
        assert keeper.load() is not None
        return make(archive, [])(draft, keeper)

    def warnings() -> list[str]:
        return [line for line in capsys.readouterr().err.splitlines() if "warning" in line]

    with pytest.raises(StoppedError):
        archive.once(on_cuda(), stops)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, value)
        archive.once(on_cuda(), resumes)
        (resumed,) = warnings()
        archive.once(on_cuda(), stops)
        assert warnings() == []  # it was finished under these
    archive.once(on_cuda(), stops)
    (reused,) = warnings()
    assert "'a run' was begun with" in resumed and f"{fact} {then} (now {now})" in resumed
    assert "'a run' is reused" in reused and f"{fact} {now} (now {then})" in reused


def test_what_is_not_known_of_both_is_no_difference(archive: Archive, capsys):
    """Records of before these facts were kept, and facts that a machine does not tell."""
    archive.once(draft(), make(archive, []))
    archive.once(on_cuda(driver="1.0", nccl=None), make(archive, []))
    assert "warning" not in capsys.readouterr().err
    other = Draft({"b": "run"}, "training", "another", (), on_cuda(driver=None, nccl="2.1").config, {}, 0, 0)
    archive.once(other, make(archive, []))
    other.config["hardware"]["cuda"] = {"driver": "2.0", "nccl": None}
    archive.once(other, make(archive, []))
    assert "warning" not in capsys.readouterr().err


def test_no_server_is_asked_about_what_is_made_from_runs_of_this_launch(archive: Archive, monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr(LineageStore, "find", lambda self, key: asked.append(key))
    made: list[str] = []
    first = archive.once(draft(), make(archive, made))
    assert set(asked) == {first.key}
    child = Draft({"a": "child"}, "training", "child", (Parent(first.key, "masked-by"),), {}, {}, 0, 0)
    archive.once(child, make(archive, made))
    assert set(asked) == {first.key} and made == ["a run", "child"]
