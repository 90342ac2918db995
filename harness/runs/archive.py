"""Finished runs: made once, committed on disk, handed to MLflow, and loaded again on every process.

A run is idempotent: its key is the digest of everything that determines its bits, so a finished run is loaded and an
unfinished one is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from harness.checkpoint import Checkpoint
from harness.common.logging import say
from harness.distributed.stop import StoppedError
from harness.distributed.world import World
from harness.lineage.nodes.code import code_version
from harness.lineage.nodes.local_files import json_bytes
from harness.lineage.nodes.record import LineageRecord
from harness.lineage.store import LineageStore
from harness.lineage.tracking.description import LAYERS
from harness.masks import Mask, SignedMask, check_fits
from harness.models import ParamPartition
from harness.runs.delivery_thread import Courier
from harness.runs.node import Draft, Node, circumstances, now_ms
from harness.runs.state_saver import Circumstances, RunKeeper, Saving
from harness.runs.unfinished import Unfinished

CHECKPOINT = "checkpoint.safetensors"
SIGNED_MASK = "signed_mask.safetensors"


class Archive:
    """The finished runs of one network, in the store of one launch."""

    def __init__(
        self, world: World, store: LineageStore, partition: ParamPartition, template: Checkpoint, saving: Saving
    ) -> None:
        """`template` has the shapes of the network; `saving` says how often an unfinished training is saved."""
        self.world, self.store, self.partition, self.template = world, store, partition, template
        self.saving = saving
        self.circumstances = Circumstances()
        self.courier = Courier(store)
        self._made_here: set[str] = set()
        self._fetched: set[str] = set()

    def join(self, other: Archive) -> None:
        """Share with another archive of the launch what was made and fetched, and the one thread that delivers it."""
        self.courier, self.circumstances = other.courier, other.circumstances
        self._made_here, self._fetched = other._made_here, other._fetched

    def once(self, draft: Draft, make: Callable[[Draft, RunKeeper], tuple[Checkpoint, Mask]]) -> Node:
        """Return the finished run of `draft.key`, making and committing it if there is none.

        `make` runs on every rank; rank 0 commits the files locally, then hands them to MLflow. A training that was
        interrupted goes on from its last state. BusyError if another launch is making the same run, StoppedError if
        this launch was asked to stop.
        """
        parents = [parent.key for parent in draft.parents]
        unfinished = Unfinished(self.store.local.directory, draft.kind, draft.key, draft.name, parents)
        if self._exists(draft.key, parents):
            self.world.on_main(unfinished.discard_if_idle)
            return self._reuse(draft)
        self.stop_if_asked()
        with self._claimed(unfinished, draft.config):
            if self._exists(draft.key, parents):  # another launch was faster
                self.world.on_main(unfinished.discard)
                return self._reuse(draft)
            keeper = RunKeeper(self.world, unfinished, draft, self.saving, self.circumstances)
            checkpoint, mask = make(draft, keeper)
            signed_mask = SignedMask.of(checkpoint.params, mask, self.partition.norm)
            for name, value in self._sign_counts(checkpoint, signed_mask).items():
                draft.log(name, value, checkpoint.epochs)
            self.world.on_main(lambda: self._commit(draft, checkpoint, signed_mask))
            self.world.on_main(unfinished.discard)
        return self._node(draft.key, checkpoint, signed_mask)

    @contextmanager
    def alone(self, kind: str, key: str, name: str) -> Iterator[None]:
        """Let no other launch do the same meanwhile; BusyError naming the other if one does."""
        unfinished = Unfinished(self.store.local.directory, kind, key, name)
        with self._claimed(unfinished, {}):
            yield
            self.world.on_main(unfinished.discard)

    @contextmanager
    def _claimed(self, unfinished: Unfinished, config: dict[str, Any]) -> Iterator[None]:
        """Hold the run on rank 0; when it is busy there, every rank raises."""
        claim = unfinished.claimed(config)
        self.world.on_main(claim.__enter__)
        try:
            for line in self.world.on_main(lambda: unfinished.nearly_the_same(config) if config else []) or []:
                say(f"note: {line}")
            yield
        finally:
            if self.world.is_main:
                claim.__exit__(None, None, None)

    def stop_if_asked(self) -> None:
        """Stop here, on every rank, if any was asked to: StoppedError."""
        reason = self.world.stop.reason
        if self.world.any(reason is not None):
            raise StoppedError(reason or "another process was asked to stop")

    def _reuse(self, draft: Draft) -> Node:
        node = self._load(draft.key)
        if node.record is not None:
            local, server = self.store.local.directory, self.store.server.address
            source = (
                f"fetched from MLflow at {server} into {local}" if draft.key in self._fetched else f"taken from {local}"
            )
            say(f"{node.record.name!r} is finished: {source}")
            then = circumstances(node.record.code, node.record.config)
            self.circumstances.compare(f"{node.record.name!r} is reused, though it was made", then, draft.circumstances)
        return node

    def load(self, key: str, *, fitting: bool = True) -> Node:
        """Return a finished run by its key; LookupError if there is none.

        Unless `fitting` is false it must be of this network: else a ValueError names every tensor that is not.
        """
        if not self._exists(key, []):
            raise LookupError(f"no finished run with key {key[:16]}…")
        return self._load(key, fitting=fitting)

    def network(self, key: str, name: str) -> Checkpoint:
        """Return a finished run's other network, by the name of its file, on every rank."""
        held = self.world.on_main(lambda: Checkpoint.load(self.store.local.open_file(key, name)))
        if self.world.size == 1:
            assert held is not None
            return held
        held = held or Checkpoint({}, {}, 0, 0, key)
        counts = self.world.share({"counts": torch.tensor([held.level, held.epochs])})["counts"].tolist()
        params, buffers = self.world.share(held.params), self.world.share(held.buffers)
        return Checkpoint(params, buffers, int(counts[0]), int(counts[1]), key)

    def commit(self, record: LineageRecord, determinants: dict[str, Any], write: Callable[[Path], None]) -> None:
        """Commit a node locally and have it delivered to MLflow (rank 0); no server is waited for."""
        self.store.local.commit(record, write, determinants)
        self._made_here.add(record.key)
        self.courier.send(record.key)

    def find(self, key: str, parents: Sequence[str]) -> Path | None:
        """Return the directory of a finished node, fetched from the server if need be (rank 0); None if there is none.

        A server that is known to be away is not asked. Nor is one about what is made from runs of this launch: had
        another launch finished that, it would have finished them too, and they would not have been made here.
        """
        here = self.store.local.find(key)
        if here is not None or self.courier.away or not self._made_here.isdisjoint(parents):
            return here
        fetched = find(self.store, key)
        if fetched is not None:
            self._fetched.add(key)
        return fetched

    def _exists(self, key: str, parents: Sequence[str]) -> bool:
        found = self.world.on_main(lambda: self.find(key, parents) is not None)
        return self.world.share_flag(bool(found))

    def _sign_counts(self, checkpoint: Checkpoint, signed_mask: SignedMask) -> dict[str, float]:
        outside = signed_mask.mask.tensors.keys() - self.partition.prunable
        kept = {n: t for n, t in signed_mask.mask.tensors.items() if n not in outside}
        # Gem-Miner's density counts the classifier, everyone else's does not
        more = {"density_without_classifier": Mask(kept).density} if outside else {}
        norm_weights = [name for name in self.partition.norm if name.endswith("weight")]
        return more | {
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
            for name, network in draft.networks.items():
                network.save(directory / name)
            if draft.layers is not None:
                (directory / LAYERS).write_bytes(json_bytes(draft.layers))

        self.commit(record, draft.determinants, write)

    def _load(self, key: str, *, fitting: bool = True) -> Node:
        def read() -> tuple[Checkpoint, SignedMask]:
            local = self.store.local
            self.courier.send(key)
            checkpoint = Checkpoint.load(local.open_file(key, CHECKPOINT))
            signed_mask = SignedMask.load(local.open_file(key, SIGNED_MASK))
            shapes = {name: tensor.shape for name, tensor in checkpoint.state_dict.items()}
            own = {name: tensor.shape for name, tensor in self.template.state_dict.items()}
            if fitting:
                check_fits(shapes, own, f"run {key[:16]}…")
                check_fits(own, shapes, "the network")
                params = {name: tensor.shape for name, tensor in self.template.params.items()}
                # Gem-Miner's masks cover the classifier too
                prunable = {name: shape for name, shape in params.items() if name not in self.partition.norm}
                check_fits({name: sign.shape for name, sign in signed_mask.signs.items()}, params, f"mask {key[:16]}…")
                check_fits(signed_mask.mask.shapes(), prunable, f"mask {key[:16]}…")
            return checkpoint, signed_mask

        loaded = self.world.on_main(read)
        if self.world.size == 1:
            assert loaded is not None
            return self._node(key, *loaded)
        return self._share(key, loaded)

    def _share(self, key: str, loaded: tuple[Checkpoint, SignedMask] | None) -> Node:
        """Give every rank what rank 0 read; the other nodes of a cluster may not see its files."""
        share = self.world.share
        if loaded is None:
            empty: dict[str, torch.Tensor] = {}
            checkpoint, signed_mask = Checkpoint(empty, empty, 0, 0, key), SignedMask(empty, Mask(empty), frozenset())
        else:
            checkpoint, signed_mask = loaded
        counts = share({"counts": torch.tensor([checkpoint.level, checkpoint.epochs])})["counts"].tolist()
        shared = Checkpoint(share(checkpoint.params), share(checkpoint.buffers), int(counts[0]), int(counts[1]), key)
        mask = Mask(share(signed_mask.mask.tensors))
        return self._node(key, shared, SignedMask(share(signed_mask.signs), mask, self.partition.norm))

    def _node(self, key: str, checkpoint: Checkpoint, signed_mask: SignedMask) -> Node:
        record = self.world.on_main(lambda: self.store.local.load(key))
        return Node(key, checkpoint, signed_mask, record, self.courier if self.world.is_main else None)


def find(store: LineageStore, key: str) -> Path | None:
    """Return the directory of a finished node; a server that is away means: look among the local ones alone."""
    try:
        return store.find(key)
    except ConnectionError as error:
        say(f"warning: {error}; looking among local runs alone")
        return store.local.find(key)


def run_id_of(store: LineageStore, key: str) -> str | None:
    """Return the run ID of a node, or None when no server can be asked."""
    try:
        return store.run_id_of(key)
    except ConnectionError:
        return None
