"""Data, network and settings of one launch, and the archive of its runs.

Searches, final trainings and comparisons are functions that take an Experiment.
"""

from __future__ import annotations

import logging
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import torch

from harness.checkpoint import Checkpoint, Fitted, Pretrained
from harness.common.digest import sha256_json
from harness.common.logging import is_quiet
from harness.common.machine import share_of_cores
from harness.common.program import command
from harness.config import NETWORKS_OWN, SearchConfig, known
from harness.data import LoaderName, choose_loader, executable_code, open_data, verify_data
from harness.distributed.world import World
from harness.experiment import describe
from harness.experiment.probe import Probe
from harness.lineage.store import LineageStore
from harness.models.initialise import SCHEMES
from harness.models.network import Definition
from harness.models.survey import changed_by_sync_batchnorm
from harness.pruning import METHODS
from harness.runs.archive import Archive
from harness.runs.state_saver import SavingInterval
from harness.training.compiled import compile_, require_compiler
from harness.training.feed import TestFeed, TrainFeed

_log = logging.getLogger(__name__)

TEST_BATCH_SIZE = 500
_SHARED = {"data", "model", "global_batch_size", "precision", "float32_matmul_precision", "accumulation_steps"}
_SHARED |= {"compile", "sync_batchnorm", "deterministic"}


@dataclass(frozen=True)
class Initialisation:
    """Source of θ_init: a scheme of SCHEMES, or a trained network from a run or a file."""

    text: str
    """The name that the user gave."""
    scheme: str = NETWORKS_OWN
    network: Pretrained | None = None
    digest: str | None = None
    """SHA-256 of the network's tensors."""
    key: str | None = None
    """Key of the run that has the network. None for a file."""

    @classmethod
    def of(cls, named: str | Initialisation) -> Initialisation:
        """Return the initialisation, or the one with this scheme name.

        `harness.cli.resolve` resolves run IDs and files.

        Raises:
            ValueError: The text names no scheme.
        """
        if isinstance(named, Initialisation):
            return named
        if named not in SCHEMES:
            try:
                known("initialisation", named, list(SCHEMES))
            except ValueError as error:
                hint = "resolve run IDs and files with harness.cli.resolve.resolve_initialisation first"
                raise ValueError(f"{error}; {hint}") from None
        return cls(named, scheme=named)

    @property
    def determinants(self) -> dict[str, Any]:
        """Inputs to θ_init besides the seed. {} for the network's own initialisation."""
        if self.digest is not None:
            return {"initialisation": {"sha256": self.digest}}
        return {} if self.scheme == NETWORKS_OWN else {"initialisation": self.scheme}

    @property
    def recorded(self) -> dict[str, Any]:
        """Entries of a run's record. {} for the network's own initialisation."""
        if self.digest is None and self.scheme == NETWORKS_OWN:
            return {}
        return {"initialisation": {"name": self.text, "sha256": self.digest, "run": self.key}}


class Experiment:
    """Data, network and settings of one launch."""

    def __init__(
        self,
        world: World,
        store: LineageStore,
        config: SearchConfig,
        initialisation: Initialisation | None = None,
        *,
        network: Definition | None = None,
        beside: Experiment | None = None,
    ) -> None:
        """Open data, loaders and archive.

        Args:
            world: The processes of the launch.
            store: The store of its runs.
            config: The settings.
            initialisation: The resolved `config.initialisation`. A search needs it unless that names a scheme.
            network: The resolved `config.model`. It is needed if that names a file.
            beside: Another experiment of the same launch. Both share its delivery thread.
        """
        definition = network or Definition.of(config.model)
        known("method", config.method, list(METHODS))
        if config.precision == "auto":
            config = replace(config, precision=world.precision)  # keys and records have the selected precision
        if config.data.loader == "auto":
            chosen = world.on_all(lambda: choose_loader(config.data.name, config.data.directory, aloud=world.is_main))
            config = replace(config, data=replace(config.data, loader=chosen))
        self.world, self.store, self.config = world, store, config
        self.loader_threads = loader_threads(config.data.num_workers, world.local_size)
        self.probe = Probe(due=config.probe and config.data.loader == "ffcv")
        self.shows_progress = world.is_main and not is_quiet()
        self._initialisation = initialisation
        if torch.get_float32_matmul_precision() != config.float32_matmul_precision:
            torch.set_float32_matmul_precision(config.float32_matmul_precision)
        if config.sync_batchnorm and world.device.type != "cuda":
            raise ValueError("--sync-batchnorm needs GPUs: torch has no SyncBatchNorm for the CPU")

        if config.compile != "no":
            world.on_all(lambda: require_compiler(world.device))

        # Phase: open the data. All processes must have equal data.
        files = config.data.name, config.data.directory, cast(LoaderName, config.data.loader)
        vouched = world.first_on_node(lambda: verify_data(*files))  # hash ImageNet's 150 GB once per node
        code = None
        if config.data.loader == "torch":
            # Rank 0 knows which Python files the user trusts. Other nodes may not.
            code = world.on_main(lambda: executable_code(*files, trust_code=config.trust_code))
            code = world.share_text(code or "")
        self.source = world.on_all(lambda: open_data(*files, vouched=vouched, code=code))
        self.spec = self.source.spec
        world.require_equal("the data set", self.source.content_digest)
        self.train_feed, self.test_feed = world.on_all(self._feeds)

        # Phase: build the network that every training copies.
        self.architecture = definition.sized(self.spec.num_classes, self.spec.channels, self.spec.image_size)
        world.on_all(self.architecture.check)
        world.require_equal("the network", sha256_json(self.architecture.determinants))
        self.partition, self.classifier = self.architecture.partition, self.architecture.classifier
        model = self.fresh_model()
        if config.sync_batchnorm:
            if changed := changed_by_sync_batchnorm(model):
                raise ValueError(
                    f"--sync-batchnorm would replace {', '.join(changed)} of {config.model.name} by a plain BatchNorm, "
                    "without the activation that it may contain; leave the option out"
                )
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        # channels_last is 1.3 times faster for a ResNet-20, also on a CPU.
        self.blank = model.to(memory_format=torch.channels_last)
        self._check_batchnorm()
        self._compiled: dict[bool, torch.nn.Module] = {}

        saving = SavingInterval(config.checkpoint_every, config.checkpoint_unit, self.train_feed.steps_per_epoch)
        other: Archive | None = beside.archive if beside else None
        self.archive: Archive = Archive(
            world,
            store,
            self.partition,
            self.theta_init(0),
            saving,
            source=definition.source,
            beside=other,
        )
        self._check_draw()

    def _check_draw(self) -> None:
        """Refuse the network of a user's file unless its seed, and nothing else, determines θ_init."""
        if self.architecture.definition.kind != "file":
            return
        first, name = self.archive.template.digest, self.config.model.name
        advice = "draw them from torch's, NumPy's or Python's global generator, without a seed of your own"
        if self.theta_init(0).digest != first:
            raise ValueError(f"{name} draws other initial parameters on a second call; {advice}")
        # Trials with other seeds would then be one trial.
        if self.config.initialisation == NETWORKS_OWN and self.theta_init(1).digest == first:
            raise ValueError(
                f"{name} draws equal initial parameters for every init_seed; {advice}. Trained weights are given as a "
                "file, with --initialisation FILE"
            )

    def _check_batchnorm(self) -> None:
        """Refuse micro-batches of one image where BatchNorm then has one value a channel, which has no variance."""
        config, world = self.config, self.world
        if config.global_batch_size // world.size // config.accumulation_steps > 1 or config.sync_batchnorm:
            return
        image_1CHW = torch.zeros(1, self.spec.channels, self.spec.image_size, self.spec.image_size)
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                deepcopy(self.blank).train()(image_1CHW)
        except ValueError as error:
            raise ValueError(
                f"global_batch_size {config.global_batch_size} over {world.size} processes and accumulation_steps "
                f"{config.accumulation_steps} leaves 1 image in a micro-batch, and BatchNorm of {config.model.name} "
                "one value a channel, which has no variance; give a larger --global-batch-size or fewer "
                f"--accumulation-steps ({error})"
            ) from error

    def _feeds(self) -> tuple[TrainFeed, TestFeed]:
        config, world = self.config, self.world
        share = config.global_batch_size // world.size
        if share < config.accumulation_steps:
            raise ValueError(
                f"accumulation_steps is {config.accumulation_steps}, but a process has only {share} images of a batch; "
                "each micro-batch needs one"
            )
        ranks = {"rank": world.rank, "world_size": world.size, "num_workers": self.loader_threads}
        train_loader = self.source.train_loader(
            global_batch_size=config.global_batch_size, device=world.device, **ranks
        )
        test_loader = self.source.test_loader(batch_size=TEST_BATCH_SIZE, device=world.device, **ranks)
        return TrainFeed(train_loader, self.spec, world.device), TestFeed(test_loader, self.spec, world.device)

    def beside(self, config: SearchConfig, initialisation: Initialisation | None = None) -> Experiment:
        """Return an experiment with other settings, possibly on other data, in the same launch and store."""
        network = self.architecture.definition if config.model == self.config.model else None
        return Experiment(self.world, self.store, config, initialisation, network=network, beside=self)

    def using(
        self, method: str | None = None, *, initialisation: str | Initialisation | None = None, **changes: Any
    ) -> Experiment:
        """Return this experiment with other search settings. Data, loaders and processes are shared.

        Args:
            method: Another name of METHODS.
            initialisation: Another scheme or resolved initialisation.
            changes: Fields of SearchConfig. None keeps a field.

        Raises:
            ValueError: The shared parts depend on a changed field.
        """
        changes = {name: value for name, value in changes.items() if value is not None}
        if fixed := sorted(changes.keys() & _SHARED):
            raise ValueError(f"{', '.join(fixed)} cannot change within a launch, because data and processes are shared")
        if method is not None:
            changes["method"] = known("method", method, list(METHODS))
        other = copy(self)
        if initialisation is not None:
            other._initialisation = Initialisation.of(initialisation)
            changes["initialisation"] = other._initialisation.text
        other.config = replace(self.config, **changes)
        other.__dict__.pop("common", None)
        return other

    @cached_property
    def common(self) -> describe.CommonDescription:
        """Determinants, configuration and tags that all runs of this launch share."""
        return describe.common(self)

    @property
    def initialisation(self) -> Initialisation:
        """The initialisation of the search. Raises ValueError for an unresolved run or file."""
        return self._initialisation or Initialisation.of(self.config.initialisation)

    def fresh_model(self) -> torch.nn.Module:
        """Build the network on the CPU. Torch's global generator draws its values."""
        return self.architecture.build()

    def network(self, *, trains: bool = True) -> torch.nn.Module:
        """Return a network on the device. The caller overwrites its parameters and buffers.

        A compiled network is one object in the whole launch, because its CUDA graphs hold the addresses of its tensors.
        So the network of an earlier call must not be used any more.

        Args:
            trains: Whether all ranks run it together. Otherwise it has no SyncBatchNorm.
        """
        whole = trains or not self.config.sync_batchnorm
        model = self._compiled.get(whole)
        if model is None:
            model = (deepcopy(self.blank) if whole else self.fresh_model()).to(self.world.device)
            if self.config.compile != "no":
                compile_(model, self.config.compile)
                self._compiled[whole] = model
        model.zero_grad()
        for own, usual in zip(model.parameters(), self.blank.parameters(), strict=True):
            own.requires_grad_(usual.requires_grad)  # an earlier training may have frozen it
        return model.train()

    def theta_init(self, init_seed: int, initialisation: str | Initialisation = NETWORKS_OWN) -> Checkpoint:
        """Return θ_init on the CPU. The state of torch's generator does not change.

        If θ_init comes from a trained network, the seed only draws a classifier that does not fit.
        """
        begun = Initialisation.of(initialisation)
        model = self.architecture.draw(init_seed, begun.scheme)
        digest = sha256_json(self.common.determinants | {"theta_init": init_seed} | begun.determinants)
        fresh = Checkpoint.of(model, level=0, epochs=0, level_digest=digest)
        if begun.network is None:
            return fresh
        try:
            fitted = begun.network.fitted(fresh, self.classifier, self.architecture.unsaved)
        except ValueError as error:
            raise ValueError(f"{begun.text}: {error}") from error
        if self.world.is_main:
            for note in [*fitted.notes, *self._mask_note(fitted)]:
                _log.info(f"note: {begun.text}: {note}")
        return fitted.checkpoint

    def _mask_note(self, fitted: Fitted) -> list[str]:
        """Tell how the zeros that torch.nn.utils.prune left in a network become a mask."""
        weights = [fitted.checkpoint.params[name] for name in self.partition.prunable] if fitted.pruned else []
        total = sum(weight.numel() for weight in weights)
        kept = sum(int(weight.count_nonzero()) for weight in weights)
        if kept in (0, total):
            return []
        how = f"`{command('search pretrained_ticket')}` makes them a mask, with --density {kept / total}"
        return [f"these zeros are values, and training changes them; {how}"]


def loader_threads(num_workers: int, local_size: int) -> int:
    """Return the loader threads of a process: for −1, its share of the cores without one for the training step."""
    return num_workers if num_workers != -1 else max(1, share_of_cores(local_size) - 1)
