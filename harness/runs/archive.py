"""Run a training once, commit it locally, deliver it to MLflow, and load it from then on.

Runs are idempotent. The key of a run is the SHA-256 of everything that determines its bits. If a finished run has this
key, it is loaded instead of trained again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from harness.checkpoint import Checkpoint
from harness.common.launched import counted
from harness.common.logging import tell_epochs
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
from harness.models.network import SOURCE_FILE
from harness.runs.delivery_thread import DeliveryThread
from harness.runs.run import FinishedRun, RunDescription, TrainedRun, closing_line
from harness.runs.state_saver import EnvironmentCheck, SavingInterval, StateSaver, environment
from harness.runs.unfinished import MovedError, Unfinished

_log = logging.getLogger(__name__)

_TAGGED = 100
"""Number of layers that the tag `empty_layers` names."""


class Archive:
    """The finished runs of one network, in the store of one launch."""

    def __init__(
        self,
        world: World,
        store: LineageStore,
        partition: ParamPartition,
        template: Checkpoint,
        saving: SavingInterval,
        *,
        source: bytes | None = None,
        beside: Archive | None = None,
    ) -> None:
        """Open the runs in `store`.

        Args:
            world: The processes of the launch.
            store: Local runs and the tracking server.
            partition: Which parameters are prunable, and which are ψ.
            template: A checkpoint with the shapes of the network.
            saving: How often an unfinished training is saved.
            source: Content of the user's file that defines the network. Each run keeps a copy.
            beside: Another archive of the same launch, whose delivery thread and caches are shared.
        """
        self.world, self.store, self.partition, self.template = world, store, partition, template
        self.saving, self.source = saving, source
        self.closing_level = logging.INFO
        """Level of the log line about each new run."""

        # Phase: share or create the state that all archives of a launch have in common.
        self.environment_check: EnvironmentCheck = (
            beside.environment_check if beside else EnvironmentCheck(code_version())
        )
        self.delivery: DeliveryThread = beside.delivery if beside else DeliveryThread(store)
        self._made_here: set[str] = beside._made_here if beside else set()
        self._fetched: set[str] = beside._fetched if beside else set()
        self._said_empty: set[str] = beside._said_empty if beside else set()
        self._notes: list[str] = beside._notes if beside else []

    # ------------------------------------------------------------------ making

    def run_or_load(self, description: RunDescription, make: Callable[[StateSaver], TrainedRun]) -> FinishedRun:
        """Return the finished run with this description. Make and commit it if there is none.

        Rank 0 commits the files locally, then passes the run to the delivery thread.

        Args:
            make: Called on every rank. It trains the network and resumes from the last saved state if there is one.

        Raises:
            BusyError: Another launch is making the same run.
            StoppedError: This launch was asked to stop.
        """
        # Phase: reuse a finished run.
        key, parents = description.key, [parent.key for parent in description.parents]
        unfinished = Unfinished(self.store.local.directory, description.kind, key, description.name, parents)
        if self.world.main_says(lambda: self.find(key, parents) is not None):
            self.world.on_main(unfinished.discard_if_idle)
            return self._reuse(description)
        self.stop_if_asked()
        if self.world.is_main:
            _log.debug(f"no finished run has the key {key[:16]}…: making {description.name!r}")

        # Phase: make and commit the run while no other launch can.
        with self._claimed(unfinished, description.config):
            # Check again: another launch may have finished the run in the meantime.
            if self.world.main_says(lambda: self.find(key, parents) is not None):
                self.world.on_main(unfinished.discard)
                return self._reuse(description)
            saver = StateSaver(self.world, unfinished, description, self.saving, self.environment_check)
            trained = make(saver)
            signed_mask = SignedMask.of(trained.checkpoint.params, trained.mask, self.partition.norm)
            record = self.world.on_main(lambda: self._commit(description, trained, signed_mask, unfinished))
            self.world.on_main(unfinished.discard)
        if record is not None:
            _log.log(self.closing_level, closing_line(record))
        return FinishedRun(key, trained.checkpoint, signed_mask, record, self.delivery if self.world.is_main else None)

    def _commit(
        self, description: RunDescription, trained: TrainedRun, signed_mask: SignedMask, unfinished: Unfinished
    ) -> LineageRecord:
        """Commit a trained run: its files, then its record (rank 0).

        Raises:
            MovedError: The directory of the runs is gone. The commit would create it again at the old path.
        """
        # Phase: count weights for the metrics.
        if not unfinished.directory.is_dir():
            raise unfinished.loss()
        checkpoint, measured = trained.checkpoint, trained.measured
        norm_weights = [name for name in self.partition.norm if name.endswith("weight")]
        counts = {
            "density": signed_mask.mask.density,
            "num_remaining": signed_mask.mask.num_remaining,
            "negative_norm_scales": sum(int((checkpoint.params[name] < 0).sum()) for name in norm_weights),
            "exact_zeros_kept": signed_mask.num_zero_signs,
        }
        if signed_mask.mask.tensors.keys() - self.partition.prunable:
            # This mask covers the classifier, which masks of other methods do not. Log the comparable density, too.
            kept = {name: t for name, t in signed_mask.mask.tensors.items() if name in self.partition.prunable}
            counts = {"density_without_classifier": Mask(kept).density, **counts}

        # Phase: build the record.
        measured.log(checkpoint.epochs, counts)
        shown = {"level": f"{description.level:02d}", "density": f"{counts['density']:.6f}"}
        if empty := [name for name, kept in signed_mask.mask.tensors.items() if not kept.any()]:
            layers = [name.removesuffix(".weight") for name in empty[:_TAGGED]]
            shown["empty_layers"] = ", ".join(layers) + (", …" if len(empty) > _TAGGED else "")
        description = replace(description, tags=description.tags | {"start_digest": trained.start_digest} | shown)
        record = self.record(description, measured.metrics, measured.started_ms)
        metadata = {"level_digest": description.key, "level": description.level, "density": counts["density"]}

        # Phase: write files and record.
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
        """Build the record of a run that ends now.

        Args:
            started_ms: Start time in ms since the epoch. 0: now, for runs without a training.
        """
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
        """Commit a run locally and queue it for delivery to MLflow, without waiting for the server (rank 0).

        Args:
            write: Writes the run's files into the given directory.
        """
        if record.parents and not self.store.local.directory.is_dir():
            raise _moved(self.store.local.directory)

        files = {} if self.source is None else {SOURCE_FILE: self.source}
        committed = self.store.local.commit(record, write, determinants, files)
        self._made_here.add(record.key)
        if self.store.tracking_uri is not None:
            self.delivery.send(record.key)
        return committed

    @contextmanager
    def alone(self, kind: str, key: str, name: str) -> Iterator[None]:
        """Claim the run `key` while the block runs, so that no other launch can make it at the same time.

        Raises:
            BusyError: Another launch has claimed the run. The message names it.
        """
        unfinished = Unfinished(self.store.local.directory, kind, key, name)
        with self._claimed(unfinished, {}):
            yield
            self.world.on_main(unfinished.discard)

    @contextmanager
    def _claimed(self, unfinished: Unfinished, config: dict[str, Any]) -> Iterator[None]:
        """Claim the run on rank 0 while the block runs. If it is busy, every rank raises BusyError."""
        claim = unfinished.claimed(config)
        self.world.on_main(claim.__enter__)
        try:
            known = len(self._notes)  # the notes of one run are enough for a launch
            self.world.on_main(
                lambda: self._notes.extend([] if known or not config else unfinished.nearly_the_same(config))
            )
            for line in self._notes[known:]:
                _log.info(f"note: {line}")
            yield
        finally:
            if self.world.is_main:
                claim.__exit__(None, None, None)

    def check_weights(self, name: str, mask: Mask) -> None:
        """Refuse a mask without any weight, and warn of layers without weights, once for each set of layers.

        Args:
            name: The name of the run, for the message.
            mask: The mask that it trains under.

        Raises:
            ValueError: No weight is left.
        """
        if mask.numel and mask.num_remaining == 0:
            raise ValueError(
                f"{name!r} keeps none of the {mask.numel:,} prunable weights: choose a ticket of higher density"
            )
        empty = [layer for layer, kept in mask.tensors.items() if not kept.any()]
        text = ", ".join(layer.removesuffix(".weight") for layer in empty)
        if text and text not in self._said_empty and self.world.is_main:
            self._said_empty.add(text)
            _log.warning(
                f"{name!r} keeps no weight in {text} ({len(empty)} of {len(mask.tensors)} layers): only shortcuts and "
                "biases pass these layers; a higher density, or the other --pruning-scope, may keep them"
            )

    def stop_if_asked(self) -> None:
        """Raise StoppedError on every rank if any rank was asked to stop."""
        reason = self.world.stop.reason
        if self.world.any(reason is not None):
            raise StoppedError(reason or "another process was asked to stop")

    # ------------------------------------------------------------------ loading

    def find(self, key: str, parents: Sequence[str]) -> Path | None:
        """Return the directory of a finished run, or None if there is none (rank 0).

        If the run is not local, it is fetched from the tracking server. The server is skipped if a parent was made in
        this launch, since no other launch can then have made this child. Once this launch has made a run, the server
        is also skipped while it is down.

        Raises:
            ConnectionError: The server is down, and this launch has made no run yet. Whether the run exists is unknown
                then, so it must not be made again.
            MovedError: The run has parents, and the directory of the runs is gone.
        """
        # Phase: look at local runs, and skip the server if it cannot have the run, or is down.
        if parents and not self.store.local.directory.is_dir():
            raise _moved(self.store.local.directory)
        here = self.store.local.find(key)
        offline = self.store.tracking_uri is None
        if here is not None or offline or not self._made_here.isdisjoint(parents):
            return here
        if self._made_here and self.delivery.away:
            return here

        # Phase: ask the server.
        try:
            with nullcontext() if self._made_here else self.store.beginning():
                fetched = self.store.find(key)
        except ConnectionError as error:
            if not self._made_here:
                raise
            _log.warning(f"{error}; {key[:16]}… is searched among local runs only")
            return here
        if fetched is not None:
            self._fetched.add(key)
        return fetched

    def knows(self, key: str) -> bool:
        """Return whether there is a finished run with this key, without fetching it (rank 0)."""
        if self.store.local.find(key) is not None:
            return True
        asked = self.store.tracking_uri is not None and not self.delivery.away
        return asked and run_id_of(self.store, key) is not None

    def _reuse(self, description: RunDescription) -> FinishedRun:
        run = self._load(description.key)
        self.check_weights(description.name, run.mask)
        if run.record is not None:
            local, server, name = self.store.local.directory, self.store.server.address, run.record.name
            fetched = description.key in self._fetched
            origin = f"loaded from MLflow at {server} into {local}" if fetched else f"loaded from {local}"
            size = run.record.config.get("launch", {}).get("world_size", self.world.size)
            _log.info(
                closing_line(run.record, origin if size == self.world.size else f"made by {counted(size)}, {origin}")
            )
            epochs = sum(metric.name == "train_loss" for metric in run.record.metrics)  # one loss an epoch
            tell_epochs(name, epochs, epochs, loaded=True)
            then, now = environment(run.record.code, run.record.config), self.environment_check.now(description.config)
            self.environment_check.compare(f"{name!r} is reused, though it was made", then, now)
        return run

    def load(self, key: str, *, fitting: bool = True) -> FinishedRun:
        """Load a finished run by its key, on every rank.

        Args:
            fitting: Whether the run's tensors must match this archive's network.

        Raises:
            LookupError: There is no finished run with this key.
            ValueError: `fitting` is true and tensors do not match. The message names them.
        """
        if not self.world.main_says(lambda: self.find(key, []) is not None):
            raise LookupError(f"no finished run with key {key[:16]}…")
        return self._load(key, fitting=fitting)

    def require_fit(self, run: FinishedRun) -> None:
        """Raise ValueError on every rank if the run's tensors do not match this archive's network."""
        self.world.on_main(lambda: self._check_fits(run.key, run.checkpoint, run.signed_mask))

    def network(self, key: str, name: str) -> Checkpoint:
        """Load a further checkpoint of a finished run by its file name, on every rank."""
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

        # Rank 0 reads and broadcasts, since other nodes of a cluster may not see its files.
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
        check_fits(shapes, own, f"run {key[:16]}…", exactly=True)
        params = {name: tensor.shape for name, tensor in self.template.params.items()}
        # Masks may also cover the classifier.
        maskable = {name: shape for name, shape in params.items() if name not in self.partition.norm}
        check_fits({name: sign.shape for name, sign in signed_mask.signs.items()}, params, f"mask {key[:16]}…")
        check_fits(signed_mask.mask.shapes(), maskable, f"mask {key[:16]}…")

    def _share_checkpoint(self, key: str, held: Checkpoint | None) -> Checkpoint:
        """Broadcast rank 0's checkpoint to every rank."""
        if self.world.size == 1:
            assert held is not None
            return held
        held = held or Checkpoint({}, {}, 0, 0, key)
        counts = self.world.share({"counts": torch.tensor([held.level, held.epochs])})["counts"].tolist()
        params, buffers = self.world.share(held.params), self.world.share(held.buffers)
        return Checkpoint(params, buffers, int(counts[0]), int(counts[1]), key)


def _moved(directory: Path) -> MovedError:
    """Return the error of a directory of runs that is gone, though it had the parents of a run."""
    return MovedError(
        f"{directory} is gone: it was moved or deleted during this launch. If it was moved, move it back. Then start "
        "the same command again"
    )


def run_id_of(store: LineageStore, key: str) -> str | None:
    """Return a run's MLflow run ID, or None if the server is unreachable."""
    try:
        return store.run_id_of(key)
    except ConnectionError:
        return None
