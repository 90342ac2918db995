"""Finished runs: made once, committed on disk, handed to MLflow, and loaded again on every process.

A run is idempotent: its key is the digest of everything that determines its bits, so a finished run is loaded and an
unfinished one is made.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from harness.checkpoint import Checkpoint
from harness.lineage.code import code_version
from harness.lineage.record import LineageRecord, Metric, Parent
from harness.lineage.store import LineageStore
from harness.masks import Mask, SignedMask, check_fits
from harness.models import ParamPartition
from harness.training.world import World

CHECKPOINT = "checkpoint.safetensors"
SIGNED_MASK = "signed_mask.safetensors"


@dataclass(frozen=True)
class Node:
    """A finished run, held in memory on every rank."""

    key: str
    checkpoint: Checkpoint
    signed_mask: SignedMask
    record: LineageRecord | None
    """What the lineage knows of it; on rank 0 alone."""
    run_id: str | None = None
    """MLflow's name for it; None where it has not been delivered, and on other ranks."""

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

    key: str
    kind: str
    name: str
    parents: tuple[Parent, ...]
    config: dict[str, Any]
    tags: dict[str, str]
    level: int
    epochs_before: int
    nested_under: str | None = None
    metrics: list[Metric] = field(default_factory=list)
    started_ms: int = field(default_factory=lambda: now_ms())

    def log(self, name: str, value: float, step: int) -> None:
        """Measure one number now."""
        self.metrics.append(Metric(name, float(value), step, now_ms()))


class Archive:
    """The finished runs of one network, in the store of one launch."""

    def __init__(self, world: World, store: LineageStore, partition: ParamPartition, template: Checkpoint) -> None:
        """`template` has the shapes of the network."""
        self.world, self.store, self.partition, self.template = world, store, partition, template
        self._warned: set[str] = set()

    def once(self, draft: Draft, make: Callable[[Draft], tuple[Checkpoint, Mask]]) -> Node:
        """Return the finished run of `draft.key`, making and committing it if there is none.

        `make` runs on every rank; rank 0 commits the files locally, then hands them to MLflow.
        """
        if self._exists(draft.key):
            node = self._load(draft.key)
            self._warn_of_differences(draft, node)
            return node
        checkpoint, mask = make(draft)
        signed_mask = SignedMask.of(checkpoint.params, mask, self.partition.norm)
        for name, value in self._sign_counts(checkpoint, signed_mask).items():
            draft.log(name, value, checkpoint.epochs)
        self.world.on_main(lambda: self._commit(draft, checkpoint, signed_mask))
        return self._node(draft.key, checkpoint, signed_mask)

    def load(self, key: str) -> Node:
        """Return a finished run of this network by its key; LookupError if there is none."""
        if not self._exists(key):
            raise LookupError(f"no finished run with key {key[:16]}…")
        return self._load(key)

    def commit(self, record: LineageRecord, write: Callable[[Path], None]) -> None:
        """Commit a node locally, then hand it to MLflow (rank 0); a server that is away only costs a warning."""
        self.store.local.commit(record, write)
        deliver(self.store, record.key)

    def _exists(self, key: str) -> bool:
        found = self.world.on_main(lambda: find(self.store, key) is not None)
        return self.world.share_flag(bool(found))

    def _sign_counts(self, checkpoint: Checkpoint, signed_mask: SignedMask) -> dict[str, float]:
        norm_weights = [name for name in self.partition.norm if name.endswith("weight")]
        return {
            "density": signed_mask.density,
            "num_remaining": signed_mask.mask.num_remaining,
            "negative_norm_scales": sum(int((checkpoint.params[name] < 0).sum()) for name in norm_weights),
            "exact_zeros_kept": signed_mask.num_zero_signs,
        }

    def _commit(self, draft: Draft, checkpoint: Checkpoint, signed_mask: SignedMask) -> None:
        tags = draft.tags | {"level": f"{draft.level:02d}", "density": f"{signed_mask.density:.6f}"}
        record = LineageRecord(
            key=draft.key,
            kind=draft.kind,
            name=draft.name,
            parents=draft.parents,
            nested_under=draft.nested_under,
            config=draft.config,
            tags=tags,
            metrics=tuple(draft.metrics),
            code=code_version(),
            started_ms=draft.started_ms,
            finished_ms=now_ms(),
        )
        metadata = {"level_digest": draft.key, "level": draft.level, "density": signed_mask.density}

        def write(directory: Path) -> None:
            checkpoint.save(directory / CHECKPOINT)
            signed_mask.save(directory / SIGNED_MASK, metadata)

        self.commit(record, write)

    def _warn_of_differences(self, draft: Draft, node: Node) -> None:
        """Say once of each thing that may change bits, and is in no key, that a reused run had it otherwise."""
        if node.record is None:
            return
        then = node.record.code | _texts(node.record.config.get("launch", {}))
        now = code_version() | _texts(draft.config.get("launch", {}))
        differ = (name for name in sorted(now) if name in then and then[name] != now[name])
        text = ", ".join(f"{name} {then[name]} (now {now[name]})" for name in differ)
        if text and text not in self._warned:
            self._warned.add(text)
            say(f"warning: {node.record.name!r} is reused, though it was made with {text}; its numbers may differ")

    def _load(self, key: str) -> Node:
        def read() -> tuple[Checkpoint, SignedMask]:
            local = self.store.local
            deliver(self.store, key)
            checkpoint = Checkpoint.load(local.open_file(key, CHECKPOINT))
            signed_mask = SignedMask.load(local.open_file(key, SIGNED_MASK))
            shapes = {name: tensor.shape for name, tensor in checkpoint.state_dict.items()}
            own = {name: tensor.shape for name, tensor in self.template.state_dict.items()}
            check_fits(shapes, own, f"run {key[:16]}…")
            check_fits(own, shapes, "the network")
            return checkpoint, signed_mask

        loaded = self.world.on_main(read)
        if self.world.size == 1:
            assert loaded is not None
            return self._node(key, *loaded)
        return self._share(key, loaded)

    def _share(self, key: str, loaded: tuple[Checkpoint, SignedMask] | None) -> Node:
        """Give every rank what rank 0 read; the other nodes of a cluster may not see its files."""
        template = self.template
        checkpoint, signed_mask = loaded or (
            template,
            SignedMask.of(template.params, Mask.dense(template.params, self.partition.prunable), self.partition.norm),
        )
        counts = self.world.share({"counts": torch.tensor([checkpoint.level, checkpoint.epochs])})["counts"].tolist()
        params = self.world.share(checkpoint.params)
        buffers = self.world.share(checkpoint.buffers)
        signs = self.world.share(signed_mask.signs)
        mask = Mask(self.world.share(signed_mask.mask.tensors))
        shared = Checkpoint(params, buffers, int(counts[0]), int(counts[1]), key)
        return self._node(key, shared, SignedMask(signs, mask, self.partition.norm))

    def _node(self, key: str, checkpoint: Checkpoint, signed_mask: SignedMask) -> Node:
        known = self.world.on_main(lambda: (self.store.local.load(key), run_id_of(self.store, key)))
        record, run_id = known or (None, None)
        return Node(key, checkpoint, signed_mask, record, run_id)


def find(store: LineageStore, key: str) -> Path | None:
    """Return the directory of a finished node; a server that is away means: look among the local ones alone."""
    try:
        return store.find(key)
    except ConnectionError as error:
        say(f"warning: {error}; looking among local runs alone")
        return store.local.find(key)


def deliver(store: LineageStore, key: str) -> str | None:
    """Hand a committed node to MLflow; return its run ID, or None, with a warning, when it cannot go there now."""
    directory = store.local.find(key)
    assert directory is not None
    if store.tracking_uri is None:
        return None  # local runs alone were asked for
    try:
        return store.deliver(directory)
    except ConnectionError as error:
        say(f"warning: {error}; nothing is lost: `python tools/lineage.py sync` delivers it later")
    except LookupError as error:  # a parent made elsewhere: no reason to lose what was made here
        say(f"warning: {error}; it stays among the local runs")
    return None


def run_id_of(store: LineageStore, key: str) -> str | None:
    """Return the run ID of a node, or None when no server can be asked."""
    try:
        return store.run_id_of(key)
    except ConnectionError:
        return None


def say(line: str) -> None:
    """Write a line to standard error without tearing a progress bar."""
    tqdm.write(line, sys.stderr)


def now_ms() -> int:
    """Return the time in whole milliseconds since 1970."""
    return int(time.time() * 1000)


def _texts(values: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}
