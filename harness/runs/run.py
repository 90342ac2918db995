"""A run in memory: described before it is made (RunDescription), trained (TrainedRun), committed (FinishedRun)."""

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
from harness.lineage.nodes.record import LineageRecord, Metric, Parent
from harness.masks import Mask, SignedMask
from harness.runs.delivery_thread import DeliveryThread


@dataclass(frozen=True)
class RunDescription:
    """All that is known of a run before it is made; two runs with equal determinants are the same run."""

    determinants: dict[str, Any]
    """The inputs to its key, as JSON-able values."""
    kind: str
    name: str
    parents: tuple[Parent, ...]
    config: dict[str, Any]
    tags: dict[str, str]
    level: int = 0
    nested_under: str | None = None

    @cached_property
    def key(self) -> str:
        """SHA-256 of the determinants."""
        return sha256_json(self.determinants)


@dataclass
class Measurements:
    """The numbers that one run measures, each with its time."""

    started_ms: int = field(default_factory=lambda: int(time.time() * 1000))
    metrics: list[Metric] = field(default_factory=list)

    def log(self, step: int, values: Mapping[str, float], samples: Iterable[tuple[str, float, int]] = ()) -> None:
        """Keep numbers that were measured just now.

        Args:
            step: Epochs trained so far.
            values: By name.
            samples: (name, value, time in ms) that were measured beside the training; their step is in seconds.
        """
        now_ms = int(time.time() * 1000)
        self.metrics += [Metric(name, float(value), step, now_ms) for name, value in values.items()]
        for name, value, time_ms in samples:
            self.metrics.append(Metric(name, value, (time_ms - self.started_ms) // 1000, time_ms))


@dataclass(frozen=True)
class TrainedRun:
    """The result of a training, before it is committed."""

    checkpoint: Checkpoint
    mask: Mask
    measured: Measurements
    start_digest: str
    """SHA-256 of θ ⊙ m as the training began."""
    layers: dict[str, Any]
    """A table with a row for each prunable tensor."""
    networks: Mapping[str, Checkpoint] = field(default_factory=dict)
    """Further networks to keep, by file name."""
    correct: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Which test images were right, bool [N], by evaluation; needed on rank 0 alone."""


LAYER_COLUMNS = ("layer", "shape", "weights", "kept", "density", "flipped_signs", "positive")


@torch.no_grad()
def layer_table(
    params: Mapping[str, torch.Tensor], start_signs: Mapping[str, torch.Tensor], mask: Mask
) -> dict[str, Any]:
    """Return a row for each prunable tensor, in the form that MLflow shows as a table: {"columns", "data"}.

    `flipped_signs` is the share of the kept weights whose sign differs from `start_signs`, `positive` the share of
    them that is positive; both are None where nothing is left.
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
        ("barrier {:.2f} points", "barrier"),
    )
    seconds = round((record.finished_ms - record.started_ms) / 1000)
    took = f"{seconds} s" if seconds < 120 else str(timedelta(seconds=seconds))
    parts = [text.format(values[name]) for text, name in shown if name in values]
    return "  ".join([record.name, *parts, origin or took, f"run {record.key[:12]}…"])


@dataclass(frozen=True)
class FinishedRun:
    """A committed run, in memory on every rank."""

    key: str
    checkpoint: Checkpoint
    signed_mask: SignedMask
    record: LineageRecord | None
    """Its record in the lineage; on rank 0 alone."""
    delivery: DeliveryThread | None = field(default=None, compare=False, repr=False)
    """The thread that delivers it to MLflow; on rank 0 alone."""

    @property
    def run_id(self) -> str | None:
        """The MLflow run ID once it is delivered; None if it cannot be now, and on other ranks."""
        return self.delivery.run_id(self.key) if self.delivery is not None else None

    @property
    def mask(self) -> Mask:
        """The kept set m."""
        return self.signed_mask.mask

    def metric(self, name: str) -> float:
        """Return the last value of a metric (rank 0)."""
        if self.record is None:
            raise RuntimeError("metrics are known on rank 0 alone")
        return self.record.last_metrics()[name]
