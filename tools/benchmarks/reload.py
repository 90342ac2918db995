"""Seconds from a run ID to the signed mask of a ResNet-50, from a local SQLite store.

The store is a real one, filled by the harness itself; the local nodes are removed, so that everything comes from
MLflow. The clock starts after the imports and one tracking call, which opens the database.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from harness.checkpoint import Checkpoint
from harness.lineage.nodes.local_files import LocalNodes
from harness.lineage.nodes.record import CHECKPOINT, SIGNED_MASK, LineageRecord
from harness.lineage.reload import load_signed_mask
from harness.lineage.store import open_store
from harness.masks import Mask, SignedMask
from harness.models import build_model, partition_of
from harness.pruning.magnitude import prune
from tools.benchmarks.row import Row

GOAL_SECONDS = 0.3
NUM_PRUNINGS = 10  # density 0.107


def rows(quick: bool) -> list[Row]:
    """Measure `load_signed_mask`; `quick` repeats less often."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        uri = f"sqlite:///{place / 'mlflow.db'}"
        run_id = _deliver_resnet50(place, uri)
        open_store(place / "none", uri).run_id_of("0" * 64)  # the first tracking call
        seconds = []
        for _ in range(3 if quick else 15):
            started = time.perf_counter()
            mask = load_signed_mask(run_id, uri, place / "none")
            seconds.append(time.perf_counter() - started)
        note = f"{len(seconds)} loads, the first {seconds[0]:.3f} s; density {mask.density:.3f} of {mask.mask.numel:,}"
    middle = median(seconds)
    return [
        Row(
            name="load_signed_mask(run_id), ResNet-50, local store [s]",
            ours=middle,
            reference=GOAL_SECONDS,
            ratio=middle / GOAL_SECONDS,
            goal=f"≤ {GOAL_SECONDS} s",
            # the first load is what a person waits for, so it has to reach the goal as well
            reached=max(middle, seconds[0]) <= GOAL_SECONDS,
            low=min(seconds) / GOAL_SECONDS,
            high=max(seconds) / GOAL_SECONDS,
            note=note,
        )
    ]


def _deliver_resnet50(place: Path, uri: str) -> str:
    """Commit and deliver one level of ResNet-50, remove the local node, and return the run ID."""
    torch.manual_seed(0)
    model = build_model("resnet50", num_classes=1000, channels=3, image_size=224)
    partition = partition_of("resnet50", model)
    params = {name: param.detach() for name, param in model.named_parameters()}
    mask = Mask.dense(params, partition.prunable)
    for _ in range(NUM_PRUNINGS):
        mask = prune(params, mask, 0.2)
    mask.apply_(params)
    record = LineageRecord("0" * 63 + "1", "level", "resnet50 L10 d0.107", tags={"level": "10"})

    def write(directory: Path) -> None:
        Checkpoint.of(model, level=NUM_PRUNINGS, epochs=0, level_digest=record.key).save(directory / CHECKPOINT)
        SignedMask.of(params, mask, partition.norm).save(directory / SIGNED_MASK, {"level": NUM_PRUNINGS})

    nodes = LocalNodes(place / "runs")
    nodes.commit(record, write)
    run_id = open_store(nodes.directory, uri, "benchmark").deliver(nodes.path(record))
    shutil.rmtree(nodes.directory)
    return run_id
