"""Algorithm 1: the level loop that finds a winning sign."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from harness.checkpoint import Checkpoint
from harness.config import Schedule
from harness.digest import sha256_json, sha256_tensors
from harness.experiment import Experiment, Start
from harness.lineage.code import code_version
from harness.lineage.record import LineageRecord, Parent
from harness.masks import Mask
from harness.pruning import METHODS, prune
from harness.runs.archive import find
from harness.runs.keeper import RunKeeper
from harness.runs.node import Draft, Node, now_ms
from harness.seeds import SgdNoise

THETA_INIT = "theta_init.safetensors"


@dataclass(frozen=True)
class SearchResult:
    """A finished search: θ_init and every level, level 0 (the dense warm-up) first."""

    theta_init: Checkpoint
    levels: list[Node]

    @property
    def ticket(self) -> Node:
        """[θ_T, m_T] after training under m_T."""
        return self.levels[-1]


def search(experiment: Experiment) -> SearchResult:
    """Find a signed mask by iterative pruning (Algorithm 1); levels already done are loaded, not repeated."""
    config = experiment.config
    schedule = {"warmup_epochs": config.warmup_epochs, "level_epochs": config.level_epochs}
    search = {"search": root_key(experiment), **schedule, "pruning_fraction": config.pruning_fraction}
    key = sha256_json(experiment.determinants | search)
    # not the number of levels: a longer search makes the same levels
    with experiment.archive.alone("search", key, _root_name(experiment)):
        return _search(experiment)


def _search(experiment: Experiment) -> SearchResult:
    config = experiment.config
    theta_init = experiment.theta_init(config.init_seed)
    root = _commit_root(experiment, theta_init)
    mask = Mask.dense(theta_init.params, experiment.partition.prunable)
    levels: list[Node] = []
    for level in range(config.num_levels + 1):
        parent = levels[-1] if levels else None
        if parent is not None:
            mask = prune(parent.checkpoint.params, parent.mask, config.pruning_fraction)  # line 8
            experiment.world.require_equal(f"the mask of level {level}", _mask_digest(mask))
        levels.append(_level(experiment, root, theta_init, level, parent, mask))  # lines 2–7
    return SearchResult(theta_init, levels)


def _level(
    experiment: Experiment, root: str, theta_init: Checkpoint, level: int, parent: Node | None, mask: Mask
) -> Node:
    """Train under mₜ from where the method starts; the learning rate is rewound because the optimizer is new."""
    config = experiment.config
    method = METHODS[config.method]
    # constant, as the paper has it for the warm-up and for every level
    schedule = Schedule(config.warmup_epochs if parent is None else config.level_epochs, "constant")
    before = parent.checkpoint if parent else theta_init
    draft = Draft(
        determinants=level_determinants(experiment, root, level, schedule, parent),
        kind="level",
        name=f"L{level:02d} d{mask.density:.3f} {config.method} {experiment.network}",
        parents=(Parent(parent.key, "pruned-from") if parent else Parent(root, "initialised-from"),),
        nested_under=root,
        config=experiment.base_config(level=level, schedule=asdict(schedule)),
        tags=experiment.base_tags(method=config.method, init_seed=config.init_seed, sgd_seed=config.sgd_seed),
        level=level,
        epochs_before=before.epochs,
    )

    def make(draft: Draft, keeper: RunKeeper) -> tuple[Checkpoint, Mask]:
        params = {name: tensor.clone() for name, tensor in method.start(theta_init.params, before.params).items()}
        mask.apply_(params)
        start = Start(params, before.buffers, mask, theta_init.params)
        noise = SgdNoise(config.sgd_seed, ("search", level))
        return experiment.train(draft, keeper, start, schedule=schedule, noise=noise, method=method, reestimate=True)

    return experiment.archive.once(draft, make)


def root_key(experiment: Experiment) -> str:
    """Return the key of a search: what all its levels share. Not the number of levels: a longer search goes on."""
    return sha256_json(_root_determinants(experiment))


def _root_determinants(experiment: Experiment) -> dict[str, Any]:
    config = experiment.config
    seeds = {"init_seed": config.init_seed, "sgd_seed": config.sgd_seed}
    return experiment.determinants | {"kind": "search", "method": config.method, **seeds}


def _root_name(experiment: Experiment) -> str:
    config = experiment.config
    return f"{config.method} {experiment.network} {config.data.name} i{config.init_seed} s{config.sgd_seed}"


def level_determinants(
    experiment: Experiment, root: str, level: int, schedule: Schedule, parent: Node | None
) -> dict[str, Any]:
    """Return everything that determines a level's bits."""
    return experiment.determinants | {
        "kind": "level",
        "root": root,
        "level": level,
        "schedule": asdict(schedule),
        "pruning_fraction": experiment.config.pruning_fraction if parent else None,
        "parent": parent.key if parent else root,
    }


def _commit_root(experiment: Experiment, theta_init: Checkpoint) -> str:
    """Record the search and its θ_init."""
    config = experiment.config
    key = root_key(experiment)
    record = LineageRecord(
        key=key,
        kind="search",
        name=_root_name(experiment),
        config=experiment.base_config(),
        tags=experiment.base_tags(
            method=config.method,
            init_seed=config.init_seed,
            sgd_seed=config.sgd_seed,
            theta_init_digest=theta_init.digest,
        ),
        code=code_version(),
        started_ms=now_ms(),
        finished_ms=now_ms(),
    )

    def commit() -> None:
        if find(experiment.store, key) is None:
            determinants = _root_determinants(experiment)
            experiment.archive.commit(record, determinants, lambda directory: theta_init.save(directory / THETA_INIT))
            return
        recorded = experiment.store.local.load(key).tags["theta_init_digest"]
        if recorded != theta_init.digest:
            raise ValueError(
                f"θ_init of seed {config.init_seed} is now {theta_init.digest[:12]}…, but this search began from "
                f"{recorded[:12]}… (another torch version or model code?); use another --runs and tracking store"
            )

    experiment.world.on_main(commit)
    return key


def _mask_digest(mask: Mask) -> str:
    return sha256_tensors({name: tensor.to(torch.uint8) for name, tensor in mask.tensors.items()})
