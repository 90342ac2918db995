"""Commit levels of a user's own loop to the lineage.

Nobody else can repeat such a training, so its key covers its results: the digests of network and signed mask.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from harness.checkpoint import Checkpoint
from harness.common.digest import sha256_json, sha256_tensors
from harness.config.own_loop import OWN_LOOP
from harness.lineage.nodes.code import code_version
from harness.lineage.nodes.local_files import LocalNodes
from harness.lineage.nodes.record import CHECKPOINT, SIGNED_MASK, THETA_INIT, LineageRecord, Metric, Parent
from harness.masks import SignedMask
from harness.pruner.arguments import numbers

_log = logging.getLogger(__name__)


def search_record(name: str, own: Mapping[str, Any], theta_init: Checkpoint) -> tuple[LineageRecord, dict[str, Any]]:
    """Return record and inputs to the key of a search.

    Args:
        name: Name of the network and data.
        own: Arguments of SignPruner, of its levels, and the user's parameters.
        theta_init: θ_init.
    """
    determinants = {"kind": "search", "made_by": OWN_LOOP, **own, "theta_init": theta_init.digest}
    tags = _tags(name, own) | {"theta_init_digest": theta_init.digest}
    return _record("search", f"{own['settings']['method']} {name}", determinants, tags, own), determinants


def level_record(
    name: str,
    own: Mapping[str, Any],
    root: str,
    parent: Parent,
    level: int,
    *,
    network: Checkpoint,
    signed_mask: SignedMask,
    start_digest: str,
    steps: int,
    metrics: Mapping[str, Any] | None,
) -> tuple[LineageRecord, dict[str, Any]]:
    """Return record and inputs to the key of a level.

    Args:
        name: Name of the network and data.
        own: As in `search_record`.
        root: Key of the search.
        parent: The level before, or the search.
        level: t.
        network: θₜ.
        signed_mask: sₜ.
        start_digest: Digest of the parameters that the level started from.
        steps: Steps of the level's training.
        metrics: The user's results.
    """
    # Phase: inputs to the key.
    density = signed_mask.density
    determinants = {
        "kind": "level",
        "made_by": OWN_LOOP,
        **own,
        "root": root,
        "parent": parent.key,
        "level": level,
        "start": start_digest,
        "steps": steps,
        "network": sha256_tensors(network.params),
        "signed_mask": signed_mask.digest,
    }

    # Phase: the record.
    tags = _tags(name, own) | {"level": f"{level:02d}", "density": f"{density:.6f}", "start_digest": start_digest}
    title = f"L{level:02d} d{density:.3f} {own['settings']['method']} {name}"
    counts = {
        "density": density,
        "num_remaining": signed_mask.mask.num_remaining,
        "exact_zeros_kept": signed_mask.num_zero_signs,
    }
    results = {name: float(value) for name, value in counts.items()} | numbers(metrics, counts)
    now = int(time.time() * 1000)
    values = tuple(Metric(name, value, steps, now) for name, value in results.items())
    record = _record("level", title, determinants, tags, own, (parent,), root, values)
    return record, determinants


def commit_search(directory: Path, record: LineageRecord, determinants: dict[str, Any], theta_init: Checkpoint) -> None:
    """Write the run of a search, unless it exists."""
    LocalNodes(directory).commit(record, lambda where: theta_init.save(where / THETA_INIT), determinants)


def commit_level(
    directory: Path,
    record: LineageRecord,
    determinants: dict[str, Any],
    network: Checkpoint,
    signed_mask: SignedMask,
    further: Mapping[str, Checkpoint],
) -> None:
    """Write the run of a level, unless it exists.

    Args:
        further: More networks that the method keeps with the level, by file name.
    """
    # Phase: write the files.
    level, key = determinants["level"], record.key
    metadata = {"level_digest": key, "level": level, "density": signed_mask.density}

    def write(where: Path) -> None:
        for name, held in {CHECKPOINT: network, **further}.items():
            Checkpoint(held.params, held.buffers, level, network.epochs, key).save(where / name)
        signed_mask.save(where / SIGNED_MASK, metadata)

    committed = LocalNodes(directory).commit(record, write, determinants)

    # Phase: an existing run is not changed.
    kept, new = ({one.name: repr(one.value) for one in run.metrics} for run in (committed, record))
    if (kept, committed.name) != (new, record.name):
        _log.warning(
            f"run {key[:12]} exists already, and keeps its name and metrics; to record others, log each level once, or "
            "give parameters that differ"
        )


def is_writer() -> bool:
    """Return whether this process writes runs: rank 0, or the only process."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not distributed or torch.distributed.get_rank() == 0


def _tags(name: str, own: Mapping[str, Any]) -> dict[str, str]:
    settings = own["settings"]
    return {"made_by": OWN_LOOP, "method": settings["method"], "network": name, "sgd_seed": str(settings["seed"])}


def _record(
    kind: str,
    name: str,
    determinants: Mapping[str, Any],
    tags: dict[str, str],
    own: Mapping[str, Any],
    parents: tuple[Parent, ...] = (),
    root: str | None = None,
    metrics: tuple[Metric, ...] = (),
) -> LineageRecord:
    now = int(time.time() * 1000)
    return LineageRecord(
        key=sha256_json(determinants),
        kind=kind,
        name=name,
        parents=parents,
        nested_under=root,
        config={OWN_LOOP: dict(own)} | ({"level": determinants["level"]} if kind == "level" else {}),
        tags=tags,
        metrics=metrics,
        code=code_version(),
        started_ms=now,
        finished_ms=now,
    )
