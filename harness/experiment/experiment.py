"""One launch put together: data, network and processes, and how a run of it is trained.

The search (`harness.experiment.search`), the final trainings and the comparisons are written on this.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from tqdm import tqdm

from harness.checkpoint import Checkpoint
from harness.common.digest import sha256_json, sha256_tensors
from harness.common.escape import redact
from harness.common.logging import say
from harness.common.machine import LoadSampler, hardware, launch_command
from harness.common.seeds import SgdNoise
from harness.config import NETWORKS_OWN, OptimConfig, Schedule, SearchConfig, known, to_json
from harness.data import DATASETS, open_data, verify_data
from harness.distributed.world import World
from harness.experiment.initialisation import Initialisation, find_initialisation
from harness.lineage.store import LineageStore
from harness.masks import Mask
from harness.models import MODELS, ParamPartition, build_model, classifier_of, draw_model, partition_of, width_of
from harness.pruning import METHODS, Companion, NormState, PruningMethod
from harness.pruning.gem_miner import ScoreTraining
from harness.runs.archive import Archive
from harness.runs.layers import layer_table
from harness.runs.node import Draft
from harness.runs.state_saver import RunKeeper, Saving
from harness.training.batchnorm import reestimate_batchnorm
from harness.training.evaluate import Evaluation, evaluate
from harness.training.feed import TestFeed, TrainFeed
from harness.training.loop import EpochReport, train

BN_IMAGES = 10_000
TEST_BATCH_SIZE = 500
SCORES = "scores.safetensors"
"""What Gem-Miner trained; lies with the network that the scores make."""
_SHARED = {"data", "model", "global_batch_size", "precision", "float32_matmul_precision", "accumulation_steps"}
_SHARED |= {"sync_batchnorm", "deterministic"}


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


class Experiment:
    """Data, network and settings of one launch, and the store its runs go to."""

    def __init__(self, world: World, store: LineageStore, config: SearchConfig) -> None:
        known("data set", config.data.name, list(DATASETS))
        known("model", config.model.name, list(MODELS))
        known("method", config.method, list(METHODS))
        if config.precision == "auto":
            config = replace(config, precision=world.precision)  # keys and records hold what it became
        self.world, self.store, self.config = world, store, config
        if torch.get_float32_matmul_precision() != config.float32_matmul_precision:
            torch.set_float32_matmul_precision(config.float32_matmul_precision)
        if config.sync_batchnorm and world.device.type != "cuda":
            raise ValueError("--sync-batchnorm needs GPUs: torch has no SyncBatchNorm for the CPU")
        self._initialisations: dict[str, Initialisation] = {}
        files = config.data.name, config.data.directory, config.data.loader
        vouched = world.first_on_node(lambda: verify_data(*files))  # 150 GB are hashed once a node
        self.source = world.on_all(lambda: open_data(*files, vouched=vouched))
        self.spec = self.source.spec
        world.require_equal("the data set", self.source.content_digest)
        self.train_feed, self.test_feed = world.on_all(self._feeds)
        self.partition: ParamPartition = partition_of(config.model.name, self.fresh_model())
        saving = Saving(config.checkpoint_every, config.checkpoint_unit, self.train_feed.steps_per_epoch)
        self.archive = Archive(world, store, self.partition, template=self.theta_init(0), saving=saving)

    def _feeds(self) -> tuple[TrainFeed, TestFeed]:
        config, world = self.config, self.world
        share = config.global_batch_size // world.size
        if share < config.accumulation_steps:
            raise ValueError(
                f"accumulation_steps is {config.accumulation_steps}, but a process has {share} images of each batch; "
                "it must have one for each"
            )
        threads = loader_threads(config.data.num_workers, world.local_size)
        ranks = {"rank": world.rank, "world_size": world.size, "num_workers": threads}
        train_loader = self.source.train_loader(
            global_batch_size=config.global_batch_size, device=world.device, **ranks
        )
        test_loader = self.source.test_loader(batch_size=TEST_BATCH_SIZE, device=world.device, **ranks)
        return TrainFeed(train_loader, self.spec, world.device), TestFeed(test_loader, self.spec, world.device)

    def beside(self, config: SearchConfig) -> Experiment:
        """Return an experiment of other settings, on other data if they say so, in the same launch and store."""
        other = Experiment(self.world, self.store, config)
        other.archive.join(self.archive)
        return other

    def using(self, method: str | None = None, **changes: Any) -> Experiment:
        """Return this experiment with another search in mind; data, loaders and processes are shared.

        `changes` are fields of SearchConfig, None leaves one as it is; what the shared parts were made from cannot be
        changed (ValueError).
        """
        changes = {name: value for name, value in changes.items() if value is not None}
        if fixed := sorted(changes.keys() & _SHARED):
            raise ValueError(f"{', '.join(fixed)} cannot be changed in a launch: data and processes are shared")
        own, other = self.config, copy(self)
        if method is not None:
            changes["method"] = known("method", method, list(METHODS))
        other.config = replace(own, **changes)
        return other

    @property
    def settings(self) -> str:
        """The first digits of a digest of everything that runs must share to be trials of one thing: all but seeds.

        Not the method and the kind either: those are what is compared.
        """
        config = self.config
        schedules = {
            "final": config.final.determinants(),
            "warmup": config.warmup_epochs,
            "level": config.level_epochs,
        }
        # as it is named, not what it is: a ticket is used where the file it once came from is not
        begun = {} if config.initialisation == NETWORKS_OWN else {"initialisation": config.initialisation}
        return sha256_json(self.determinants | schedules | self.pruning_settings | begun)[:12]

    @property
    def pruning_settings(self) -> dict[str, Any]:
        """How levels are pruned, as the settings say it; what is usual and came later is left out."""
        config = self.config
        own: dict[str, Any] = {"pruning_fraction": config.pruning_fraction}
        if config.densities is not None:
            own = {"densities": config.densities}
        usual = {"pruning_scope": "global", "one_shot": False, "order": "default"}
        return own | {name: value for name in usual if (value := getattr(config, name)) != usual[name]}

    @property
    def network(self) -> str:
        """The network's name, with its width where that is not its own."""
        model = self.config.model
        width = width_of(model.name, model.width)
        return model.name if width == width_of(model.name, None) else f"{model.name}-w{width}"

    @property
    def determinants(self) -> dict[str, Any]:
        """What determines the bits of every run of this launch, seeds and method aside."""
        config, matmul = self.config, self.config.float32_matmul_precision
        return {
            "format": 2,
            "data": self.source.content_digest,
            # not where its raw files lie: their content has a digest
            "spec": {name: value for name, value in asdict(self.spec).items() if name != "raw"},
            "model": {"name": config.model.name, "width": width_of(config.model.name, config.model.width)},
            "optim": config.optim.determinants(),
            "precision": config.precision,
            "deterministic": config.deterministic,
            "global_batch_size": config.global_batch_size,
            "accumulation_steps": config.accumulation_steps,
            "sync_batchnorm": config.sync_batchnorm and self.world.size > 1,
            "world_size": self.world.size,
            **self._order_of_sums,
            **({"float32_matmul_precision": matmul} if matmul != "highest" else {}),
        }

    @property
    def _order_of_sums(self) -> dict[str, str]:
        """How gradients are put into buckets, where that changes bits: a + b = b + a, but three can be added two ways.

        Runs of three or more processes without it were made when each training kept the buckets DDP begins with.
        """
        return {"gradient_buckets": "by first backward"} if self.world.size > 2 else {}

    def fresh_model(self) -> torch.nn.Module:
        """Build the network; its values are whatever torch's generator gives."""
        return build_model(self.config.model.name, **self._sizes)

    @property
    def _sizes(self) -> dict[str, Any]:
        spec = self.spec
        sizes = {"num_classes": spec.num_classes, "channels": spec.channels, "image_size": spec.image_size}
        return sizes | {"width": self.config.model.width}

    def theta_init(self, init_seed: int, initialisation: str = NETWORKS_OWN) -> Checkpoint:
        """Return θ_init, on the CPU, leaving torch's own generator as it was.

        `initialisation` is a scheme, or names a trained network by run ID or file: then the seed draws only a
        classifier that does not fit.
        """
        known_as = self.initialisation(initialisation)
        model = draw_model(self.config.model.name, init_seed=init_seed, scheme=known_as.scheme, **self._sizes)
        digest = sha256_json(self.determinants | {"theta_init": init_seed} | known_as.determinants)
        fresh = Checkpoint.of(model, level=0, epochs=0, level_digest=digest)
        if known_as.network is None:
            return fresh
        fitted, kept_fresh = known_as.network.fitted(fresh, classifier_of(self.config.model.name))
        if kept_fresh and self.world.is_main:
            say(f"note: {', '.join(kept_fresh)} are drawn: {initialisation} has none that fit")
        return fitted

    def initialisation(self, text: str) -> Initialisation:
        """Return the initialisation that `text` names; what it reads it reads once."""
        if text not in self._initialisations:
            self._initialisations[text] = find_initialisation(self.world, self.store, text)
        return self._initialisations[text]

    def train(
        self,
        draft: Draft,
        keeper: RunKeeper,
        start: Start,
        *,
        schedule: Schedule,
        noise: SgdNoise,
        method: PruningMethod,
        reestimate: bool,
        optim: OptimConfig | None = None,
        begin_steps: int = 0,
        companion: Companion | None = None,
        scoring: ScoreTraining | None = None,
        frozen: Collection[str] = (),
    ) -> tuple[Checkpoint, Mask]:
        """Train from `start` and evaluate: 𝒜(θ ⊙ m, u).

        `reestimate` evaluates with BatchNorm statistics taken anew too: those of an AWS level are not those of ψ.
        Schedule and u begin after `begin_steps` of their steps. `optim` stands instead of the experiment's own, and
        `frozen` parameters are not trained. With `scoring` the parameters are Gem-Miner's scores: what is returned is
        the network that they make, and its mask.
        """
        self.world.announce()
        begin = divmod(begin_steps, self.train_feed.steps_per_epoch)
        epochs = schedule.epochs - begin[0]  # one that is begun half-way counts
        draft.tags["start_digest"] = start.digest
        model = self._model_at(start)
        params = dict(model.named_parameters())
        norm = sorted(self.partition.norm)
        psi_init = [start.psi_init[name].to(self.world.device) for name in norm]
        view = scoring.view if scoring else method.forward_view(NormState([params[name] for name in norm], psi_init))
        begun = scoring.weights if scoring else start.params
        signs = {name: begun[name].sign() for name in start.mask.tensors}
        for name in frozen:
            params[name].requires_grad_(False)

        flipped = _FlippedSigns(params, signs, start.mask) if self.world.is_main and scoring is None else None

        def on_epoch(report: EpochReport) -> None:
            step = draft.epochs_before + report.epoch - begin[0] + 1
            draft.log("train_loss", report.train_loss, step)
            draft.log("train_error_percent", report.train_error_percent, step)
            draft.log("lr", report.lr, step)
            draft.log("images_per_second", report.images_per_second, step)
            if method.sees_alpha:
                draft.log("alpha_mean", report.alpha_mean, step)
            if flipped is not None:
                draft.log("flipped_signs", flipped.share(), step)
            draft.add(sampler.take())

        sampler = LoadSampler(draft.started_ms / 1000)
        watched = sampler if self.world.is_main else nullcontext()
        with watched, self._progress(draft.name, schedule.epochs, begin_steps) as keeper.on_resume:
            train(
                model,
                world=self.world,
                batches=self.train_feed,
                noise=noise,
                optim=optim or self.config.optim,
                schedule=schedule,
                mask=start.mask,
                view=view,
                accumulation_steps=self.config.accumulation_steps,
                begin=begin,
                label=draft.name,
                on_epoch=on_epoch,
                keeper=keeper,
                companion=scoring or companion,
            )
        scores = scoring.settle_() if scoring else {}
        checkpoint = self._snapshot(model, draft, epochs)
        if scores:
            draft.networks[SCORES] = Checkpoint(scores, {}, checkpoint.level, checkpoint.epochs, draft.key)
        mask = scoring.mask if scoring else start.mask
        draft.layers = layer_table(checkpoint.params, signs, mask)
        spent = draft.epochs_before if draft.epochs_spent is None else draft.epochs_spent
        draft.log("epochs_total", spent + epochs, checkpoint.epochs)
        self._evaluate(model, checkpoint, draft, noise, reestimate=reestimate)
        return checkpoint, mask

    def _model_at(self, start: Start) -> torch.nn.Module:
        model = self.fresh_model()
        Checkpoint(start.params, start.buffers, 0, 0, "").load_into_(model)
        if self.config.sync_batchnorm:
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
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
        self, model: torch.nn.Module, checkpoint: Checkpoint, draft: Draft, noise: SgdNoise, *, reestimate: bool
    ) -> None:
        recorded = self.evaluate(model)
        final = recorded
        if reestimate:
            # an AWS level's running statistics were gathered under random α; they are not those of ψ
            with self.world.autocast():
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
            for images_NCHW, _ in self.train_feed.epoch(SgdNoise(sgd_seed, ("batchnorm",)), 0, num_steps=steps):
                yield images_NCHW
        finally:
            self.train_feed.on_step = on_step

    @contextmanager
    def _progress(self, label: str, epochs: int, begin_steps: int) -> Iterator[Callable[[int], None]]:
        """Show a bar on rank 0; gives what moves it to where a training goes on."""
        bar = tqdm(
            total=epochs * self.train_feed.steps_per_epoch,
            initial=begin_steps,
            desc=label,
            unit="step",
            leave=False,
            disable=not self.world.is_main,
        )
        with bar:
            self.train_feed.on_step = lambda: bar.update(1) and None
            try:
                yield lambda steps: bar.update(steps - begin_steps) and None
            finally:
                self.train_feed.on_step = lambda: None

    def base_tags(self, **more: object) -> dict[str, str]:
        """Tags every run of this launch carries."""
        tags = {"data": self.spec.name, "data_digest": self.source.content_digest, "model": self.config.model.name}
        tags |= {"network": self.network, "settings": self.settings}
        return tags | {name: str(value) for name, value in more.items()}

    def base_config(self, **more: object) -> dict[str, Any]:
        """The whole configuration, and what more determines this run."""
        launch = {
            "world_size": self.world.size,
            **self._order_of_sums,
            "device": self.world.device_name,
            "threads": torch.get_num_threads(),
        }
        data = {"num_train": self.source.num_train, "num_test": self.source.num_test}
        how = {"launch": launch, "hardware": hardware(self.world.device), "command": redact(launch_command())}
        how["argv"] = [redact(word) for word in sys.argv]  # a record is given away, passwords are not
        return {"search": to_json(self.config), "data": data} | how | more


class _FlippedSigns:
    """Counts, where the weights lie, which kept ones have another sign than at the start: one number is fetched."""

    def __init__(self, params: Mapping[str, torch.nn.Parameter], signs: Mapping[str, torch.Tensor], mask: Mask) -> None:
        self._weights: list[torch.Tensor] = [params[name] for name in signs]
        # laid out like the weights: a comparison over mismatched strides takes twice the time
        self._signs = [_like(w, signs[name], torch.int8) for name, w in zip(signs, self._weights, strict=True)]
        self._kept = [_like(w, mask.tensors[name], torch.bool) for name, w in zip(signs, self._weights, strict=True)]
        self._num_kept = max(mask.num_remaining, 1)

    @torch.no_grad()
    def share(self) -> float:
        """Return the share of the kept weights, 0..1."""
        differ = [
            ((weight.sign() != sign) & kept).sum()
            for weight, sign, kept in zip(self._weights, self._signs, self._kept, strict=True)
        ]
        return float(torch.stack(differ).sum()) / self._num_kept


def _like(weight: torch.Tensor, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty_like(weight, dtype=dtype, requires_grad=False).copy_(values)


def loader_threads(num_workers: int, local_size: int) -> int:
    """Return how many loader threads a process takes; −1 shares the machine's cores out over its processes."""
    return num_workers if num_workers != -1 else max(1, len(os.sched_getaffinity(0)) // local_size)
