"""One launch put together: data, network, processes and lineage, and the runs made of them.

A run is idempotent: its key is the digest of everything that determines its bits, so a finished run is loaded and an
unfinished one is made. The search (`harness.search`), the final trainings and the comparisons are written on this.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from harness.checkpoint import Checkpoint
from harness.config import Schedule, SearchConfig, known, to_json
from harness.data import DATASETS, open_data
from harness.digest import sha256_json, sha256_tensors
from harness.lineage.code import code_version
from harness.lineage.record import LineageRecord, Metric, Parent
from harness.lineage.store import LineageStore
from harness.masks import Mask, SignedMask, check_fits
from harness.models import MODELS, ParamPartition, build_model, partition_of
from harness.pruning import METHODS, NormState, PruningMethod
from harness.seeds import SgdNoise, derive_seed
from harness.training.batchnorm import reestimate_batchnorm
from harness.training.evaluate import Evaluation, evaluate
from harness.training.feed import TestFeed, TrainFeed
from harness.training.loop import EpochReport, train
from harness.training.world import World

CHECKPOINT = "checkpoint.safetensors"
SIGNED_MASK = "signed_mask.safetensors"
BN_IMAGES = 10_000
TEST_BATCH_SIZE = 500


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
class Start:
    """What a training starts from, and what tells it apart."""

    params: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    mask: Mask
    psi_init: dict[str, torch.Tensor]
    """ψ_init, for methods whose forward pass sees it."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of θ ⊙ m as training begins: equal starts are provably equal."""
        return sha256_tensors(self.params)


@dataclass
class Draft:
    """A run that is about to be made: its place in the lineage."""

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


class Experiment:
    """Data, network and settings of one launch, and the store its runs go to."""

    def __init__(self, world: World, store: LineageStore, config: SearchConfig) -> None:
        known("data set", config.data.name, list(DATASETS))
        known("model", config.model.name, list(MODELS))
        known("method", config.method, list(METHODS))
        self.world, self.store, self.config = world, store, config
        self.source = open_data(config.data.name, config.data.directory, config.data.loader)
        self.spec = self.source.spec
        world.require_equal("the data set", self.source.content_digest)
        if config.global_batch_size // world.size < config.accumulation_steps:
            raise ValueError(
                f"accumulation_steps is {config.accumulation_steps}, but a process has "
                f"{config.global_batch_size // world.size} images of each batch; it must have one for each"
            )
        ranks = {"rank": world.rank, "world_size": world.size, "num_workers": config.data.num_workers}
        train_loader = self.source.train_loader(
            global_batch_size=config.global_batch_size, device=world.device, **ranks
        )
        test_loader = self.source.test_loader(batch_size=TEST_BATCH_SIZE, device=world.device, **ranks)
        self.train_feed = TrainFeed(train_loader, self.spec, world.device)
        self.test_feed = TestFeed(test_loader, self.spec, world.device)

    def using(self, method: str) -> Experiment:
        """Return this experiment with another pruning method; data, loaders and processes are shared."""
        other = copy(self)
        other.config = replace(self.config, method=known("method", method, list(METHODS)))
        return other

    @property
    def determinants(self) -> dict[str, Any]:
        """What determines the bits of every run of this launch, seeds and method aside."""
        config = self.config
        return {
            "format": 1,
            "data": self.source.content_digest,
            # not where its raw files lie: their content has a digest
            "spec": {name: value for name, value in asdict(self.spec).items() if name != "raw"},
            "model": asdict(config.model),
            "optim": asdict(config.optim),
            "precision": config.precision,
            "deterministic": config.deterministic,
            "global_batch_size": config.global_batch_size,
            "accumulation_steps": config.accumulation_steps,
            "world_size": self.world.size,
        }

    def key(self, **determinants: Any) -> str:
        """Return the digest of a run of this launch that `determinants` tell from its siblings."""
        return sha256_json(self.determinants | determinants)

    def fresh_model(self) -> torch.nn.Module:
        """Build the network; its values are whatever torch's generator gives."""
        return build_model(
            self.config.model.name,
            num_classes=self.spec.num_classes,
            channels=self.spec.channels,
            image_size=self.spec.image_size,
            width=self.config.model.width,
        )

    def theta_init(self, init_seed: int) -> Checkpoint:
        """Draw θ_init, on the CPU, leaving torch's own generator as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(init_seed, "init") >> 1)
            model = self.fresh_model()
        return Checkpoint.of(model, level=0, epochs=0, level_digest=self.key(theta_init=init_seed))

    @cached_property
    def partition(self) -> ParamPartition:
        """Which parameters are prunable, norm or other."""
        return partition_of(self.config.model.name, self.fresh_model())

    def once(self, draft: Draft, make: Callable[[Draft], tuple[Checkpoint, Mask]], template: Checkpoint) -> Node:
        """Return the finished run of `draft.key`, making and committing it if there is none.

        `make` runs on every rank; rank 0 commits the files locally, then hands them to MLflow. `template` has the
        shapes of the network.
        """
        found = self.world.on_main(lambda: find(self.store, draft.key) is not None)
        if self.world.share_flag(bool(found)):
            return self._load(draft.key, template)
        checkpoint, mask = make(draft)
        signed_mask = SignedMask.of(checkpoint.params, mask, self.partition.norm)
        for name, value in self._sign_counts(checkpoint, signed_mask).items():
            draft.log(name, value, checkpoint.epochs)
        self.world.on_main(lambda: self._commit(draft, checkpoint, signed_mask))
        return self._node(draft.key, checkpoint, signed_mask)

    def load(self, key: str) -> Node:
        """Return a finished run of this data set and network by its key; LookupError if there is none."""
        found = self.world.on_main(lambda: find(self.store, key) is not None)
        if not self.world.share_flag(bool(found)):
            raise LookupError(f"no finished run with key {key[:16]}…")
        return self._load(key, self.theta_init(0))

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

    def commit(self, record: LineageRecord, write: Callable[[Path], None]) -> None:
        """Commit a node locally, then hand it to MLflow (rank 0); a server that is away only costs a warning."""
        self.store.local.commit(record, write)
        deliver(self.store, record.key)

    def _load(self, key: str, template: Checkpoint) -> Node:
        def read() -> tuple[Checkpoint, SignedMask]:
            local = self.store.local
            directory = local.find(key)
            assert directory is not None
            deliver(self.store, key)
            checkpoint = Checkpoint.load(local.open_file(key, CHECKPOINT))
            signed_mask = SignedMask.load(local.open_file(key, SIGNED_MASK))
            shapes = {name: tensor.shape for name, tensor in checkpoint.state_dict.items()}
            own = {name: tensor.shape for name, tensor in template.state_dict.items()}
            check_fits(shapes, own, f"run {key[:16]}…")
            check_fits(own, shapes, "the network")
            return checkpoint, signed_mask

        loaded = self.world.on_main(read)
        if self.world.size == 1:
            assert loaded is not None
            return self._node(key, *loaded)
        return self._share(key, loaded, template)

    def _share(self, key: str, loaded: tuple[Checkpoint, SignedMask] | None, template: Checkpoint) -> Node:
        """Give every rank what rank 0 read; the other nodes of a cluster may not see its files."""
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

    def train(
        self, draft: Draft, start: Start, *, schedule: Schedule, noise: SgdNoise, method: PruningMethod, search: bool
    ) -> tuple[Checkpoint, Mask]:
        """Train from `start` and evaluate: 𝒜(θ ⊙ m, u). `search` levels are evaluated with statistics of ψ too."""
        draft.tags["start_digest"] = start.digest
        model = self._model_at(start)
        params = dict(model.named_parameters())
        norm = sorted(self.partition.norm)
        view = method.forward_view(
            NormState([params[name] for name in norm], [start.psi_init[name].to(self.world.device) for name in norm])
        )
        signs = {name: start.params[name].sign() for name in start.mask.tensors}

        def on_epoch(report: EpochReport) -> None:
            step = draft.epochs_before + report.epoch + 1
            draft.log("train_loss", report.train_loss, step)
            draft.log("train_error_percent", report.train_error_percent, step)
            draft.log("lr", report.lr, step)
            draft.log("images_per_second", report.images_per_second, step)
            if self.world.is_main:
                draft.log("flipped_signs", _flipped(params, signs, start.mask), step)

        with self._progress(draft.name, schedule.epochs):
            train(
                model,
                world=self.world,
                batches=self.train_feed,
                noise=noise,
                optim=self.config.optim,
                schedule=schedule,
                mask=start.mask,
                view=view,
                accumulation_steps=self.config.accumulation_steps,
                label=draft.name,
                on_epoch=on_epoch,
            )
        checkpoint = self._snapshot(model, draft, schedule.epochs)
        self._evaluate(model, checkpoint, draft, noise, search=search)
        return checkpoint, start.mask

    def _model_at(self, start: Start) -> torch.nn.Module:
        model = self.fresh_model()
        Checkpoint(start.params, start.buffers, 0, 0, "").load_into_(model)
        # channels_last is 1.3 times faster for a ResNet-20 on CPU too
        return model.to(memory_format=torch.channels_last).to(self.world.device)

    def _snapshot(self, model: torch.nn.Module, draft: Draft, epochs: int) -> Checkpoint:
        # each rank's BatchNorm statistics differ after the last step: rank 0's are everyone's
        mine = Checkpoint.of(model, level=draft.level, epochs=draft.epochs_before + epochs, level_digest=draft.key)
        shared = Checkpoint(mine.params, self.world.share(mine.buffers), mine.level, mine.epochs, mine.level_digest)
        self.world.require_equal(f"parameters of {draft.name}", sha256_tensors(shared.params))
        shared.load_into_(model)
        return shared

    def _evaluate(
        self, model: torch.nn.Module, checkpoint: Checkpoint, draft: Draft, noise: SgdNoise, *, search: bool
    ) -> None:
        recorded = self.evaluate(model)
        final = recorded
        if search:
            # an AWS level's running statistics were gathered under random α; they are not those of ψ
            reestimate_batchnorm(model, self.bn_batches(noise.sgd_seed, BN_IMAGES), "cumulative")
            self._average_buffers_(model)  # every rank saw its share of the images
            final = self.evaluate(model)
            draft.log("test_error_percent_recorded_bn", recorded.error_percent, checkpoint.epochs)
        draft.log("test_error_percent", final.error_percent, checkpoint.epochs)
        draft.log("test_loss", final.loss, checkpoint.epochs)

    @torch.no_grad()
    def _average_buffers_(self, model: torch.nn.Module) -> None:
        for buffer in model.buffers():
            if buffer.is_floating_point() and self.world.size > 1:
                buffer.copy_(self.world.sum(buffer) / self.world.size)

    def evaluate(self, model: torch.nn.Module) -> Evaluation:
        """Evaluate on the whole test split, each image once over all ranks."""
        return evaluate(model, self.test_feed, self.world, num_images=self.test_feed.num_images)

    def bn_batches(self, sgd_seed: int, num_images: int) -> Iterator[torch.Tensor]:
        """Yield augmented training images (NCHW) for BatchNorm statistics, chosen by key, in batches of one size."""
        steps = min(-(-num_images // self.config.global_batch_size), self.train_feed.steps_per_epoch)
        on_step, self.train_feed.on_step = self.train_feed.on_step, lambda: None
        try:
            for images_NCHW, _ in self.train_feed.epoch(SgdNoise(sgd_seed, ("batchnorm",)), 0, steps):
                yield images_NCHW
        finally:
            self.train_feed.on_step = on_step

    @contextmanager
    def _progress(self, label: str, epochs: int) -> Iterator[None]:
        steps = epochs * self.train_feed.steps_per_epoch
        with tqdm(total=steps, desc=label, unit="step", leave=False, disable=not self.world.is_main) as bar:
            self.train_feed.on_step = lambda: bar.update(1) and None
            try:
                yield
            finally:
                self.train_feed.on_step = lambda: None

    def base_tags(self, **more: object) -> dict[str, str]:
        """Tags every run of this launch carries."""
        tags = {"data": self.spec.name, "data_digest": self.source.content_digest, "model": self.config.model.name}
        return tags | {name: str(value) for name, value in more.items()}

    def base_config(self, **more: object) -> dict[str, Any]:
        """The whole configuration, and what more determines this run."""
        launch = {"world_size": self.world.size, "device": self.world.device.type, "threads": torch.get_num_threads()}
        return {"search": to_json(self.config), "launch": launch, "argv": sys.argv} | more


def find(store: LineageStore, key: str) -> Path | None:
    """Return the directory of a finished node; a server that is away means: look among the local ones alone."""
    try:
        return store.find(key)
    except ConnectionError as error:
        tqdm.write(f"warning: {error}; looking among local runs alone", sys.stderr)
        return store.local.find(key)


def deliver(store: LineageStore, key: str) -> str | None:
    """Hand a committed node to MLflow; return its run ID, or None with a warning when the server is away."""
    directory = store.local.find(key)
    assert directory is not None
    try:
        return store.deliver(directory)
    except ConnectionError as error:
        tqdm.write(f"warning: {error}; nothing is lost: `python tools/lineage.py sync` delivers it later", sys.stderr)
        return None


def run_id_of(store: LineageStore, key: str) -> str | None:
    """Return the run ID of a node, or None when no server can be asked."""
    try:
        return store.run_id_of(key)
    except ConnectionError:
        return None


def _flipped(params: dict[str, torch.nn.Parameter], signs: dict[str, torch.Tensor], mask: Mask) -> float:
    """Share of the kept weights whose sign differs from the start's."""
    with torch.no_grad():
        differ = [((params[name].sign().cpu() != sign) & mask.tensors[name]).sum() for name, sign in signs.items()]
    return float(torch.stack(differ).sum()) / max(mask.num_remaining, 1)


def now_ms() -> int:
    """Return the time in whole milliseconds since 1970."""
    return int(time.time() * 1000)
