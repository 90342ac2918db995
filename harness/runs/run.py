"""A run in memory, in three stages: RunDescription (before it is made), TrainedRun and FinishedRun (committed)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import Any

import torch

from harness.checkpoint import Checkpoint
from harness.common.digest import sha256_json
from harness.lineage.nodes.record import LineageRecord, Metric, Parent, shown_barrier
from harness.masks import Mask, SignedMask
from harness.runs.delivery_thread import DeliveryThread


@dataclass(frozen=True)
class RunDescription:
    """The data of a run that are known before it is made. Runs with equal determinants are the same run."""

    determinants: dict[str, Any]
    """The inputs to the run's key: JSON-serialisable values that determine its bits."""
    kind: str
    name: str
    parents: tuple[Parent, ...]
    config: dict[str, Any]
    tags: dict[str, str]
    level: int = 0
    nested_under: str | None = None

    @cached_property
    def key(self) -> str:
        """Return the SHA-256 of the determinants."""
        return sha256_json(self.determinants)


@dataclass
class Measurements:
    """The metrics of one run, each with its time."""

    started_ms: int = field(default_factory=lambda: int(time.time() * 1000))
    metrics: list[Metric] = field(default_factory=list)

    def log(self, step: int, values: Mapping[str, float], samples: Iterable[tuple[str, float, int]] = ()) -> None:
        """Append metrics.

        Args:
            step: The number of epochs trained so far.
            values: Values by name, measured now.
            samples: (name, value, time in ms) measured in the background. Their step is in seconds since the start.
        """
        now_ms = int(time.time() * 1000)
        self.metrics += [Metric(name, float(value), step, now_ms) for name, value in values.items()]
        for name, value, time_ms in samples:
            self.metrics.append(Metric(name, value, (time_ms - self.started_ms) // 1000, time_ms))


@dataclass(frozen=True)
class TrainedRun:
    """The result of a training that is not committed yet."""

    checkpoint: Checkpoint
    mask: Mask
    measured: Measurements
    start_digest: str
    """SHA-256 of θ ⊙ m at the start of the training."""
    layers: dict[str, Any]
    """The table that `layer_table` returns."""
    networks: Mapping[str, Checkpoint] = field(default_factory=dict)
    """Further checkpoints to store, by file name."""
    correct: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """By name of the evaluation: whether each test image was classified correctly, bool [N]. Used only on rank 0."""


LAYER_COLUMNS = ("layer", "shape", "weights", "kept", "density", "flipped_signs", "positive")


@torch.no_grad()
def layer_table(
    params: Mapping[str, torch.Tensor], start_signs: Mapping[str, torch.Tensor], mask: Mask
) -> dict[str, Any]:
    """Return statistics of each prunable tensor as an MLflow table: {"columns": …, "data": …}.

    `flipped_signs` is the share of kept weights whose sign differs from `start_signs`. `positive` is the share of kept
    weights that are positive. Both are None for a layer without kept weights.
    """
    rows = []
    for name, kept in mask.tensors.items():
        signs = params[name].detach().sign().cpu()
        num_kept = int(kept.sum())
        flipped = int(((signs != start_signs[name]) & kept).sum())
        positive = int(((signs > 0) & kept).sum())
        shares = [flipped / num_kept, positive / num_kept] if num_kept else [None, None]
        shape = "×".join(str(size) for size in kept.shape)
        rows.append([name, shape, kept.numel(), num_kept, num_kept / kept.numel(), *shares])
    return {"columns": list(LAYER_COLUMNS), "data": rows}


def closing_line(record: LineageRecord, origin: str = "") -> str:
    """Return the line that the terminal keeps of a finished run.

    Args:
        record: Its record. The line shows the last value of each metric.
        origin: How a finished run was loaded. "" shows the time that it took to make.
    """
    values = {metric.name: metric.value for metric in record.metrics}  # recorded in the order of time
    shown = (
        ("test error {:.2f} %", "test_error_percent"),
        ("loss {:.3g}", "train_loss"),
    )
    seconds = round((record.finished_ms - record.started_ms) / 1000)
    took = f"{seconds} s" if seconds < 120 else str(timedelta(seconds=seconds))
    parts = [text.format(values[name]) for text, name in shown if name in values]
    if (barrier := shown_barrier(record.tags, values)) is not None:
        points, is_difference = barrier
        parts.append(f"errors differ by {points:.2f} points" if is_difference else f"barrier {points:.2f} points")
    return "  ".join([record.name, *parts, origin or took, f"key {record.key[:12]}…"])


@dataclass(frozen=True)
class FinishedRun:
    """A committed run, loaded on every rank."""

    key: str
    checkpoint: Checkpoint
    signed_mask: SignedMask
    record: LineageRecord | None
    """Its record in the lineage. None on ranks other than 0."""
    delivery: DeliveryThread | None = field(default=None, compare=False, repr=False)
    """The thread that delivers it to MLflow. None on ranks other than 0."""

    def __repr__(self) -> str:
        """Return the name and key of the run, and its signed mask."""
        name = self.record.name if self.record is not None else f"level {self.checkpoint.level}"
        return f"FinishedRun: {name}, key {self.key}\n{self.signed_mask!r}"

    @property
    def run_id(self) -> str | None:
        """Wait for delivery and return the MLflow run ID.

        None if the server is unreachable, and on ranks other than 0.
        """
        return self.delivery.run_id(self.key) if self.delivery is not None else None

    @property
    def mask(self) -> Mask:
        """Return m, the mask of the kept weights."""
        return self.signed_mask.mask

    def metric(self, name: str) -> float:
        """Return the last value of a metric (rank 0)."""
        if self.record is None:
            raise RuntimeError("metrics are available on rank 0 only")
        return self.record.last_metrics()[name]
