"""Finished runs: made once, committed on disk, handed to MLflow, and loaded again on every process.

A run is idempotent: its key is the digest of everything that determines its bits, so a finished run is loaded and an
unfinished one is made.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from harness.checkpoint import Checkpoint
from harness.common.tensors import check_fits, save_correct
from harness.distributed.stop import StoppedError
from harness.distributed.world import World
from harness.lineage.nodes.code import code_version
from harness.lineage.nodes.local_files import json_bytes
from harness.lineage.nodes.record import CHECKPOINT, CORRECT, SIGNED_MASK, LineageRecord
from harness.lineage.store import LineageStore
from harness.lineage.tracking.description import LAYERS
from harness.masks import Mask, SignedMask
from harness.models import ParamPartition
from harness.runs.delivery_thread import DeliveryThread
from harness.runs.run import FinishedRun, RunDescription, TrainedRun, closing_line
from harness.runs.state_saver import EnvironmentCheck, SavingInterval, StateSaver, environment
from harness.runs.unfinished import Unfinished

_log = logging.getLogger(__name__)


class Archive:
    """The finished runs of one network, in the store of one launch."""

    def __init__(
        self,
        world: World,
        store: LineageStore,
        partition: ParamPartition,
        template: Checkpoint,
        saving: SavingInterval,
        beside: Archive | None = None,
    ) -> None:
        """Open the runs in `store`.

        Args:
            world: The processes of the launch.
            store: Local runs and the tracking server.
            partition: Which parameters are prunable, and which are ψ.
            template: A checkpoint with the shapes of the network.
            saving: How often an unfinished training is saved.
            beside: Another archive of the launch, whose delivery thread is shared.
        """
        self.world, self.store, self.partition, self.template = world, store, partition, template
        self.saving = saving
        self.environment_check: EnvironmentCheck = (
            beside.environment_check if beside else EnvironmentCheck(code_version())
        )
        self.delivery: DeliveryThread = beside.delivery if beside else DeliveryThread(store)
        self._made_here: set[str] = beside._made_here if beside else set()
        self._fetched: set[str] = beside._fetched if beside else set()

    # ------------------------------------------------------------------ making

    def run_or_load(self, description: RunDescription, make: Callable[[StateSaver], TrainedRun]) -> FinishedRun:
        """Return the finished run with this description; make and commit it if there is none.

        `make` runs on every rank. Rank 0 commits the files locally, then hands them to the delivery thread. An
        interrupted training resumes from its last state.

        Raises:
            BusyError: Another launch is making the same run.
            StoppedError: This launch was asked to stop.
        """
        key, parents = description.key, [parent.key for parent in description.parents]
        unfinished = Unfinished(self.store.local.directory, description.kind, key, description.name, parents)
        if self.world.main_says(lambda: self.find(key, parents) is not None):
            self.world.on_main(unfinished.discard_if_idle)
            return self._reuse(description)
        self.stop_if_asked()
        if self.world.is_main:
            _log.debug(f"no finished run has the key {key[:16]}…: {description.name!r} is made")
        with self._claimed(unfinished, description.config):
            if self.world.main_says(lambda: self.find(key, parents) is not None):  # another launch was faster
                self.world.on_main(unfinished.discard)
                return self._reuse(description)
            saver = StateSaver(self.world, unfinished, description, self.saving, self.environment_check)
            trained = make(saver)
            signed_mask = SignedMask.of(trained.checkpoint.params, trained.mask, self.partition.norm)
            record = self.world.on_main(lambda: self._commit(description, trained, signed_mask))
            self.world.on_main(unfinished.discard)
        if record is not None:
            _log.info(closing_line(record))
        return FinishedRun(key, trained.checkpoint, signed_mask, record, self.delivery if self.world.is_main else None)

    def _commit(self, description: RunDescription, trained: TrainedRun, signed_mask: SignedMask) -> LineageRecord:
        """Write the files of a trained run, then its record (rank 0)."""
        checkpoint, measured = trained.checkpoint, trained.measured
        norm_weights = [name for name in self.partition.norm if name.endswith("weight")]
        counts = {
            "density": signed_mask.mask.density,
            "num_remaining": signed_mask.mask.num_remaining,
            "negative_norm_scales": sum(int((checkpoint.params[name] < 0).sum()) for name in norm_weights),
            "exact_zeros_kept": signed_mask.num_zero_signs,
        }
        if signed_mask.mask.tensors.keys() - self.partition.prunable:
            # a mask that covers the classifier counts it in its density; everyone else's does not
            kept = {name: t for name, t in signed_mask.mask.tensors.items() if name in self.partition.prunable}
            counts = {"density_without_classifier": Mask(kept).density, **counts}
        measured.log(checkpoint.epochs, counts)
        shown = {"level": f"{description.level:02d}", "density": f"{counts['density']:.6f}"}
        description = replace(description, tags=description.tags | {"start_digest": trained.start_digest} | shown)
        record = self.record(description, measured.metrics, measured.started_ms)
        metadata = {"level_digest": description.key, "level": description.level, "density": counts["density"]}

        def write(directory: Path) -> None:
            checkpoint.save(directory / CHECKPOINT)
            signed_mask.save(directory / SIGNED_MASK, metadata)
            for name, network in trained.networks.items():
                network.save(directory / name)
            if trained.correct:
                save_correct(directory / CORRECT, trained.correct)
            (directory / LAYERS).write_bytes(json_bytes(trained.layers))

        return self.commit(record, description.determinants, write)

    def record(self, description: RunDescription, metrics: Sequence[Any] = (), started_ms: int = 0) -> LineageRecord:
        """Return the record of a run that ends now; one that trained nothing began now, too."""
        now_ms = int(time.time() * 1000)
        return LineageRecord(
            key=description.key,
            kind=description.kind,
            name=description.name,
            parents=description.parents,
            nested_under=description.nested_under,
            config=description.config,
            tags=description.tags,
            metrics=tuple(metrics),
            code=self.environment_check.code,
            started_ms=started_ms or now_ms,
            finished_ms=now_ms,
        )

    def commit(
        self, record: LineageRecord, determinants: dict[str, Any], write: Callable[[Path], None]
    ) -> LineageRecord:
        """Commit a node locally and have it delivered to MLflow (rank 0); no server is waited for."""
        committed = self.store.local.commit(record, write, determinants)
        self._made_here.add(record.key)
        if self.store.tracking_uri is not None:
            self.delivery.send(record.key)
        return committed

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
                _log.info(f"note: {line}")
            yield
        finally:
            if self.world.is_main:
                claim.__exit__(None, None, None)

    def stop_if_asked(self) -> None:
        """Stop here, on every rank, if any was asked to: StoppedError."""
        reason = self.world.stop.reason
        if self.world.any(reason is not None):
            raise StoppedError(reason or "another process was asked to stop")

    # ------------------------------------------------------------------ loading

    def find(self, key: str, parents: Sequence[str]) -> Path | None:
        """Return the directory of a finished run, fetched from the server if need be (rank 0); None if there is none.

        Skip the server if it is down, or if a parent was made in this launch: then no other launch can have made this
        child.
        """
        here = self.store.local.find(key)
        offline = self.store.tracking_uri is None
        if here is not None or offline or self.delivery.away or not self._made_here.isdisjoint(parents):
            return here
        fetched = find(self.store, key)
        if fetched is not None:
            self._fetched.add(key)
        return fetched

    def _reuse(self, description: RunDescription) -> FinishedRun:
        run = self._load(description.key)
        if run.record is not None:
            local, server, name = self.store.local.directory, self.store.server.address, run.record.name
            fetched = description.key in self._fetched
            _log.info(
                closing_line(
                    run.record, f"loaded from MLflow at {server} into {local}" if fetched else f"loaded from {local}"
                )
            )
            then, now = environment(run.record.code, run.record.config), self.environment_check.now(description.config)
            self.environment_check.compare(f"{name!r} is reused, though it was made", then, now)
        return run

    def load(self, key: str, *, fitting: bool = True) -> FinishedRun:
        """Return a finished run by its key; LookupError if there is none.

        Unless `fitting` is false it must be of this network: else a ValueError names every tensor that is not.
        """
        if not self.world.main_says(lambda: self.find(key, []) is not None):
            raise LookupError(f"no finished run with key {key[:16]}…")
        return self._load(key, fitting=fitting)

    def network(self, key: str, name: str) -> Checkpoint:
        """Return a finished run's other network, by the name of its file, on every rank."""
        held = self.world.on_main(lambda: Checkpoint.load(self.store.local.open_file(key, name)))
        return self._share_checkpoint(key, held)

    def _load(self, key: str, *, fitting: bool = True) -> FinishedRun:
        def read() -> tuple[Checkpoint, SignedMask]:
            local = self.store.local
            self.delivery.send(key)
            checkpoint = Checkpoint.load(local.open_file(key, CHECKPOINT))
            signed_mask = SignedMask.load(local.open_file(key, SIGNED_MASK))
            if fitting:
                self._check_fits(key, checkpoint, signed_mask)
            return checkpoint, signed_mask

        # the other nodes of a cluster may not see rank 0's files
        checkpoint, signed_mask = self.world.on_main(read) or (None, None)
        shared = self._share_checkpoint(key, checkpoint)
        if self.world.size > 1:
            signed_mask = signed_mask or SignedMask({}, Mask({}), frozenset())
            mask = Mask(self.world.share(signed_mask.mask.tensors))
            signed_mask = SignedMask(self.world.share(signed_mask.signs), mask, self.partition.norm)
        assert signed_mask is not None
        record = self.world.on_main(lambda: self.store.local.load(key))
        return FinishedRun(key, shared, signed_mask, record, self.delivery if self.world.is_main else None)

    def _check_fits(self, key: str, checkpoint: Checkpoint, signed_mask: SignedMask) -> None:
        shapes = {name: tensor.shape for name, tensor in checkpoint.state_dict.items()}
        own = {name: tensor.shape for name, tensor in self.template.state_dict.items()}
        check_fits(shapes, own, f"run {key[:16]}…")
        check_fits(own, shapes, "the network")
        params = {name: tensor.shape for name, tensor in self.template.params.items()}
        # a mask may cover the classifier too
        maskable = {name: shape for name, shape in params.items() if name not in self.partition.norm}
        check_fits({name: sign.shape for name, sign in signed_mask.signs.items()}, params, f"mask {key[:16]}…")
        check_fits(signed_mask.mask.shapes(), maskable, f"mask {key[:16]}…")

    def _share_checkpoint(self, key: str, held: Checkpoint | None) -> Checkpoint:
        """Return rank 0's checkpoint on every rank."""
        if self.world.size == 1:
            assert held is not None
            return held
        held = held or Checkpoint({}, {}, 0, 0, key)
        counts = self.world.share({"counts": torch.tensor([held.level, held.epochs])})["counts"].tolist()
        params, buffers = self.world.share(held.params), self.world.share(held.buffers)
        return Checkpoint(params, buffers, int(counts[0]), int(counts[1]), key)


def find(store: LineageStore, key: str) -> Path | None:
    """Return the directory of a finished node; a server that is away means: look among the local ones alone."""
    try:
        return store.find(key)
    except ConnectionError as error:
        _log.warning(f"{error}; looking among local runs alone")
        return store.local.find(key)


def run_id_of(store: LineageStore, key: str) -> str | None:
    """Return the run ID of a node, or None when no server can be asked."""
    try:
        return store.run_id_of(key)
    except ConnectionError:
        return None
