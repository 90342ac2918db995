"""A run as it stands in memory: finished (Node), or about to be made (Draft)."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from harness.checkpoint import Checkpoint
from harness.common.digest import sha256_json
from harness.lineage.nodes.code import code_version
from harness.lineage.nodes.record import LineageRecord, Metric, Parent
from harness.masks import Mask, SignedMask
from harness.runs.delivery_thread import Courier


@dataclass(frozen=True)
class Node:
    """A finished run, held in memory on every rank."""

    key: str
    checkpoint: Checkpoint
    signed_mask: SignedMask
    record: LineageRecord | None
    """What the lineage knows of it; on rank 0 alone."""
    courier: Courier | None = field(default=None, compare=False, repr=False)
    """Who delivers it to MLflow; on rank 0 alone."""

    @property
    def run_id(self) -> str | None:
        """MLflow's name for it, once it is delivered; None where it cannot be now, and on other ranks."""
        return self.courier.run_id(self.key) if self.courier is not None else None

    @property
    def mask(self) -> Mask:
        """The kept set m."""
        return self.signed_mask.mask

    def metric(self, name: str) -> float:
        """Return the last value of a metric (rank 0)."""
        if self.record is None:
            raise RuntimeError("metrics are known on rank 0 alone")
        return self.record.last_metrics()[name]


@dataclass
class Draft:
    """A run that is about to be made: its place in the lineage, and what it has measured so far."""

    determinants: dict[str, Any]
    """Everything that determines the run's bits, as plain JSON values; its digest is the run's key."""
    kind: str
    name: str
    parents: tuple[Parent, ...]
    config: dict[str, Any]
    tags: dict[str, str]
    level: int
    epochs_before: int
    """Epochs behind this run's first: where its metrics by epoch go on."""
    epochs_spent: int | None = None
    """Epochs spent for it by others, where that is more (the search a ticket came from)."""
    nested_under: str | None = None
    metrics: list[Metric] = field(default_factory=list)
    started_ms: int = field(default_factory=lambda: now_ms())
    networks: dict[str, Checkpoint] = field(default_factory=dict)
    """Other networks that the training leaves, by the name of their file."""
    layers: dict[str, Any] | None = None
    """What the training made of each layer (`harness.runs.layers`)."""

    @cached_property
    def key(self) -> str:
        """The run's name among all runs: equal keys, equal bits."""
        return sha256_json(self.determinants)

    @property
    def circumstances(self) -> dict[str, str]:
        """What is in no key and may change bits all the same: code, versions, threads, device, its libraries."""
        return circumstances(code_version(), self.config)

    def log(self, name: str, value: float, step: int) -> None:
        """Measure one number now."""
        self.metrics.append(Metric(name, float(value), step, now_ms()))

    def add(self, samples: Iterable[tuple[str, float, int]]) -> None:
        """Keep numbers (name, value, time in ms) that were measured beside the training; their step is in seconds."""
        for name, value, time_ms in samples:
            self.metrics.append(Metric(name, value, (time_ms - self.started_ms) // 1000, time_ms))


def now_ms() -> int:
    """Return the time in whole milliseconds since 1970."""
    return int(time.time() * 1000)


def circumstances(code: dict[str, str], config: dict[str, Any]) -> dict[str, str]:
    """Return the circumstances that a record knows, as text; an unknown one is None there and left out here."""
    known = config.get("launch", {}) | config.get("hardware", {}).get("cuda", {})
    return code | {name: str(value) for name, value in known.items() if value is not None}
