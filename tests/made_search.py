"""Commit the runs of a search with invented weights, without training.

Initial parameters, pruning and digests are real, so that `verify` finds no problem. A test injects a fault by
changing one run just before it is committed. Its digests are then valid, so that only the check for this fault
can find it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from harness.checkpoint import Checkpoint
from harness.common.digest import canonical_json, sha256_json, sha256_tensors
from harness.common.seeds import SgdNoise, alpha_mean
from harness.common.tensors import save_correct
from harness.config import DataConfig, ModelConfig, OptimConfig, Schedule, SearchConfig, to_json
from harness.lineage.nodes.code import code_version
from harness.lineage.nodes.local_files import DETERMINANTS, LocalNodes
from harness.lineage.nodes.record import CHECKPOINT, CORRECT, SIGNED_MASK, THETA_INIT, LineageRecord, Metric, Parent
from harness.lineage.proof.networks import Architecture
from harness.masks import Mask, SignedMask, transfer
from harness.pruning import prune

NUM_TRAIN, NUM_TEST = 1297, 500
START_MS = 1_790_000_000_000


@dataclass
class Draft:
    """A run that is about to be committed.

    For a comparison `params` and `signed_mask` are None.
    """

    kind: str
    name: str
    parents: tuple[Parent, ...]
    determinants: dict[str, Any]
    config: dict[str, Any]
    tags: dict[str, str]
    level: int = 0
    epochs: int = 0
    nested_under: str | None = None
    metrics: list[Metric] = field(default_factory=list)
    params: dict[str, torch.Tensor] | None = None
    buffers: dict[str, torch.Tensor] = field(default_factory=dict)
    signed_mask: SignedMask | None = None
    curve: dict[str, Any] | None = None
    correct: dict[str, torch.Tensor] = field(default_factory=dict)
    """Maps each evaluation to a Boolean tensor: whether each image was classified correctly."""
    key: str | None = None
    """Replaces the digest of the determinants, if given."""
    owner: str | None = None
    """Key written into the run's files, if it differs from the run's key."""

    def log(self, name: str, value: float, step: int = 0) -> None:
        """Add a metric."""
        self.metrics.append(Metric(name, float(value), step, START_MS + len(self.metrics)))


Change = Callable[[Draft], None]


def small_config(directory: Path, num_levels: int = 1, **settings: Any) -> SearchConfig:
    """Return settings of a search of a ResNet-8 of width 2 on digits.

    Args:
        directory: Directory of the prepared data, which need not exist.
        num_levels: Number of levels after level 0.
        settings: Further fields of `SearchConfig`, or other values of the fields set here.
    """
    fields: dict[str, Any] = {
        "data": DataConfig("digits", directory=directory),
        "model": ModelConfig("resnet8", width=2),
        "optim": OptimConfig(),
        "final": Schedule(2, "step"),
        "warmup_epochs": 1,
        "level_epochs": 1,
        "global_batch_size": 64,
    }
    return SearchConfig(**fields | settings, num_levels=num_levels)


class MadeSearch:
    """Commit the runs of one search in order.

    Args:
        nodes: Store that receives the local runs.
        config: Settings of the search.
        architecture: The network, with the sizes of its data set.
        data_digest: Content digest of the data set.
        changes: Functions that change a draft before it is committed, by the run's short name. Short names are
            "search", "L00", "L01", …, the kind of a final training, and "lmc".
    """

    def __init__(
        self,
        nodes: LocalNodes,
        config: SearchConfig,
        architecture: Architecture,
        data_digest: str,
        changes: Mapping[str, Change] | None = None,
    ) -> None:
        self.nodes, self.config, self.architecture = nodes, config, architecture
        self.data_digest = data_digest
        self.changes = dict(changes or {})
        self.keys: dict[str, str] = {}
        """Key of each run by its short name."""
        assert architecture.network is not None
        self.network, self.partition = architecture.network, architecture.network.partition
        self._made: dict[str, Draft] = {}

    def make(self, finals: tuple[str, ...] = ()) -> MadeSearch:
        """Commit the search, its levels, and final trainings of the ticket.

        Args:
            finals: Kinds of final training. The first two are also compared, if there are two.
        """
        theta_init = self._root()
        parent = None
        for level in range(self.config.num_levels + 1):
            parent = self._level(level, theta_init, parent)
        for kind in finals:
            self._final(kind)
        if len(finals) > 1:
            self._compare(finals[0], finals[1])
        return self

    def directory(self, name: str) -> Path:
        """Return the directory of a committed run."""
        found = self.nodes.find(self.keys[name])
        assert found is not None
        return found

    def _determinants(self, **more: Any) -> dict[str, Any]:
        config, architecture = self.config, self.architecture
        sizes = {name: getattr(self.network, name) for name in ("num_classes", "channels", "image_size")}
        return {
            "format": 2,
            "data": self.data_digest,
            "spec": {"name": config.data.name, **sizes},
            "model": {"name": architecture.name, "width": self.network.definition.width},
            "optim": config.optim.determinants(),
            "global_batch_size": config.global_batch_size,
            "world_size": 1,
        } | more

    def _config(self, **more: Any) -> dict[str, Any]:
        search = json.loads(json.dumps(to_json(self.config)))
        data = {"num_train": NUM_TRAIN, "num_test": NUM_TEST}
        return {"search": search, "data": data, "launch": {"world_size": 1}, "argv": ["made up"]} | more

    def _tags(self, **more: Any) -> dict[str, str]:
        tags = {"data": self.config.data.name, "data_digest": self.data_digest, "model": self.architecture.name}
        width = self.network.definition.width
        tags["network"] = self.architecture.name if width is None else f"{self.architecture.name}-w{width}"
        return tags | {name: str(value) for name, value in more.items()}

    @property
    def _seeds(self) -> dict[str, int]:
        return {"init_seed": self.config.init_seed, "sgd_seed": self.config.sgd_seed}

    def _root(self) -> Checkpoint:
        theta_init = self.architecture.theta_init(self.config.init_seed)
        determinants = self._determinants(kind="search", method=self.config.method, **self._seeds)
        tags = self._tags(method=self.config.method, theta_init_digest=theta_init.digest, **self._seeds)
        draft = Draft("search", "made-up search", (), determinants, self._config(), tags)
        draft.params, draft.buffers = theta_init.params, theta_init.buffers
        self._commit("search", draft)
        return theta_init

    def _level(self, level: int, theta_init: Checkpoint, parent: Draft | None) -> Draft:
        # Phase: start from the initial parameters, or prune the parent level
        config, root = self.config, self.keys["search"]
        if parent is None:
            begun, mask = theta_init.params, Mask.dense(theta_init.params, self.partition.prunable)
        else:
            assert parent.params is not None and parent.signed_mask is not None
            begun, mask = parent.params, prune(parent.params, parent.signed_mask.mask, config.pruning_fraction)
        start = {name: tensor.clone() for name, tensor in begun.items()}
        mask.apply_(start)
        # Phase: describe the level as a search does
        epochs = config.level_epochs if level else config.warmup_epochs
        schedule = {"epochs": epochs, "lr_schedule": "constant"}
        above = self.keys[f"L{level - 1:02d}"] if level else root
        draft = Draft(
            "level",
            f"L{level:02d} d{mask.density:.3f} {config.method} {self.architecture.name}",
            (Parent(above, "pruned-from" if level else "initialised-from"),),
            self._determinants(
                kind="level",
                root=root,
                level=level,
                schedule=schedule,
                pruning_fraction=config.pruning_fraction if level else None,
                parent=above,
            ),
            self._config(level=level, schedule=schedule),
            self._tags(method=config.method, start_digest=sha256_tensors(start), **self._seeds),
            level=level,
            epochs=(parent.epochs if parent else 0) + epochs,
            nested_under=root,
        )
        # Phase: log α as AWS does, then replace training and commit
        noise = SgdNoise(config.sgd_seed, ("search", level))
        for epoch in range(epochs):
            alphas = noise.alphas(epoch, NUM_TRAIN // config.global_batch_size)
            if config.method == "aws":
                draft.log("alpha_mean", alpha_mean(alphas), draft.epochs - epochs + epoch + 1)
        self._train(draft, start, mask, theta_init.buffers, seed=level)
        self._commit(f"L{level:02d}", draft)
        return draft

    def _final(self, kind: str, init_seed: int = 2, sgd_seed: int = 1) -> None:
        # Phase: compute the start that this kind has
        config, ticket = self.config, self._made[f"L{self.config.num_levels:02d}"]
        assert ticket.params is not None and ticket.signed_mask is not None
        fresh = self.architecture.theta_init(init_seed)
        if kind == "dense":
            start, mask = fresh.params, Mask.dense(fresh.params, self.partition.prunable)
        else:
            start, mask = transfer.start(kind, fresh.params, ticket.params, ticket.signed_mask, seed=init_seed)
        # Phase: describe the training, replace it and commit
        key = None if kind == "dense" else self.keys[f"L{config.num_levels:02d}"]
        drawn = None if kind == "retrain" else init_seed
        schedule = {"epochs": config.final.epochs, "lr_schedule": config.final.lr_schedule}
        digest = sha256_tensors(start)
        seeds = {"init_seed": drawn, "sgd_seed": sgd_seed}
        draft = Draft(
            "training",
            f"{kind} d{mask.density:.3f} {self.architecture.name}",
            (Parent(key, "trained-from" if kind == "retrain" else "masked-by"),) if key else (),
            self._determinants(kind="training", used_as=kind, ticket=key, start=digest, schedule=schedule, **seeds),
            self._config(kind=kind, ticket=key, unpruned_signs=True, **seeds),
            self._tags(
                kind_of_training=kind,
                start_digest=digest,
                **{name: value for name, value in seeds.items() if value is not None},
            ),
            level=config.num_levels if key else 0,
            epochs=config.final.epochs,
        )
        self._train(draft, {name: tensor.clone() for name, tensor in start.items()}, mask, fresh.buffers, seed=99)
        self._commit(kind, draft)

    def _train(
        self, draft: Draft, start: dict[str, torch.Tensor], mask: Mask, buffers: dict[str, torch.Tensor], seed: int
    ) -> None:
        """Add noise to every live weight instead of training.

        Sets the checkpoint, signed mask and metrics of the draft.
        """
        generator = torch.Generator().manual_seed(seed)
        for tensor in start.values():
            tensor += 0.01 * torch.randn(tensor.shape, generator=generator)
        mask.apply_(start)
        draft.params, draft.buffers = start, buffers
        draft.signed_mask = SignedMask.of(start, mask, self.partition.norm)
        draft.log("test_error_percent", 10.0, draft.epochs)
        draft.correct["test"] = _right_but_for(10.0)
        if draft.kind == "level":
            draft.log("test_error_percent_recorded_bn", 12.6, draft.epochs)
            draft.correct["test_recorded_bn"] = _right_but_for(12.6)

    def _compare(self, first: str, second: str) -> None:
        pair = self.keys[first], self.keys[second]
        errors = [12.0, 20.0, 14.0]
        starts = [self._made[name].tags["start_digest"] for name in (first, second)]
        draft = Draft(
            "analysis",
            f"lmc: {first} | {second}",
            tuple(Parent(key, "compared") for key in pair),
            {"kind": "analysis", "question": "lmc", "pair": sorted(pair)}
            | {name: self._determinants()[name] for name in ("format", "data", "spec", "model")},
            self._config(question="lmc"),
            self._tags(question="lmc", same_start=str(starts[0] == starts[1]).lower()),
            curve={"alphas": [0.0, 0.5, 1.0], "error_percent": errors},
        )
        for name, value in {"barrier": 7.0, "barrier_floor": 1.0, "barrier_above_line": 7.0}.items():
            draft.log(name, value)
        for step, error in enumerate(errors):
            draft.log("error_percent", error, step)
        draft.correct["points"] = torch.stack([_right_but_for(error) for error in errors])
        self._commit("lmc", draft)

    def _commit(self, name: str, draft: Draft) -> None:
        # Phase: apply the test's change, then compute key, mask tags and metrics
        number = len(self.keys)
        if name in self.changes:
            self.changes[name](draft)
        key = draft.key or sha256_json(draft.determinants)
        owner, mask = draft.owner or key, draft.signed_mask
        if mask is not None:
            draft.tags |= {"level": f"{draft.level:02d}", "density": f"{mask.density:.6f}"}
            draft.log("num_remaining", mask.mask.num_remaining, draft.epochs)
            if all(metric.name != "density" for metric in draft.metrics):
                draft.log("density", mask.density, draft.epochs)
        # Phase: write the record and all files of the run
        record = LineageRecord(
            key=key,
            kind=draft.kind,
            name=draft.name,
            parents=draft.parents,
            nested_under=draft.nested_under,
            config=draft.config,
            tags=draft.tags,
            metrics=tuple(draft.metrics),
            code=code_version(),
            started_ms=START_MS + 10_000 * number,
            finished_ms=START_MS + 10_000 * number + 9_000,
        )

        def write(directory: Path) -> None:
            if draft.determinants:
                (directory / DETERMINANTS).write_text(canonical_json(draft.determinants))
            if draft.curve is not None:
                (directory / "barrier.json").write_text(json.dumps(draft.curve))
            if draft.params is not None:
                checkpoint = Checkpoint(draft.params, draft.buffers, draft.level, draft.epochs, owner)
                checkpoint.save(directory / (THETA_INIT if draft.kind == "search" else CHECKPOINT))
            if mask is not None:
                header = {"level_digest": owner, "level": draft.level, "density": mask.density}
                mask.save(directory / SIGNED_MASK, header)
            if draft.correct:
                save_correct(directory / CORRECT, draft.correct)

        self.nodes.commit(record, write)
        self.keys[name] = key
        self._made[name] = replace(draft)


def _right_but_for(error_percent: float) -> torch.Tensor:
    """Mark the first `error_percent` % of the test images as wrong.

    Returns:
        Boolean tensor that is True for correct images.
    """
    return torch.arange(NUM_TEST) >= round(NUM_TEST * error_percent / 100)
