"""Algorithm 1: the level loop that finds a winning sign."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from harness.checkpoint import Checkpoint
from harness.common.digest import sha256_json, sha256_tensors
from harness.common.seeds import SgdNoise, search_scope
from harness.config import NETWORKS_OWN, Schedule, SearchConfig
from harness.experiment import gem_search
from harness.experiment.experiment import Experiment, Start
from harness.experiment.initialisation import THETA_INIT
from harness.lineage.nodes.code import code_version
from harness.lineage.nodes.record import LineageRecord, Parent
from harness.masks import Mask
from harness.pruning import METHODS, Plan
from harness.pruning.wr import RewindPoint
from harness.runs.node import Draft, Node, now_ms
from harness.runs.state_saver import RunKeeper

THETA_K = "theta_k.safetensors"
"""What weight rewinding goes back to; lies with level 0."""


@dataclass(frozen=True)
class SearchResult:
    """A finished search: θ_init and its levels, level 0 (the dense warm-up) first.

    One-shot pruning has level 0 and level T alone, Gem-Miner level T.
    """

    theta_init: Checkpoint
    levels: list[Node]

    @property
    def ticket(self) -> Node:
        """[θ_T, m_T] after training under m_T."""
        return self.levels[-1]

    def at(self, level: int) -> Node:
        """[θₜ, mₜ]; LookupError if the search has no such level."""
        for node in self.levels:
            if node.checkpoint.level == level:
                return node
        raise LookupError(f"no level {level} in this search; it has {[n.checkpoint.level for n in self.levels]}")


@dataclass(frozen=True)
class _Step:
    """One training of the search: its level, its schedule, and what sets it apart."""

    level: int
    schedule: Schedule
    prunes: bool = True
    """Whether its mask is a new one."""
    again: bool = False
    """Level 0 trained on, before the first pruning (order=paper)."""
    last: bool = False
    """Pruned and not trained (order=paper)."""

    @property
    def phase(self) -> str:
        """What sets it apart from the one usual training of a level: a word, or nothing."""
        return "again" if self.again else "untrained" if self.last else ""


def search(experiment: Experiment) -> SearchResult:
    """Find a signed mask by iterative pruning (Algorithm 1); levels already done are loaded, not repeated."""
    check(experiment.config)
    config = experiment.config
    schedule = {"warmup_epochs": config.warmup_epochs, "level_epochs": config.level_epochs}
    search = {"search": root_key(experiment), **schedule, **experiment.pruning_settings}
    key = sha256_json(experiment.determinants | search)
    # not the number of levels: a longer search makes the same levels
    with experiment.archive.alone("search", key, _root_name(experiment)):
        return _search(experiment)


def check(config: SearchConfig) -> None:
    """Refuse options that contradict one another."""
    method = METHODS[config.method]
    if method.scores:
        gem_search.check(config)
        return
    if config.order == "paper" and method.training == "full":
        raise ValueError(f"order=paper is Algorithm 1 with short levels; those of {config.method} are full trainings")
    if config.order == "paper" and config.num_levels == 0:
        raise ValueError("order=paper takes the signs of a pruned network; num_levels must be 1 or more")
    if config.one_shot and config.num_levels == 0:
        raise ValueError("one_shot prunes to the density of level num_levels; it must be 1 or more")
    if method.ranking is None and (config.densities is not None or config.one_shot):
        raise ValueError(f"{config.method} prunes nothing: it takes neither densities nor one_shot")


def _search(experiment: Experiment) -> SearchResult:
    theta_init = experiment.theta_init(experiment.config.init_seed, _initialisation(experiment.config))
    root = _commit_root(experiment, theta_init)
    if METHODS[experiment.config.method].scores:
        return SearchResult(theta_init, [gem_search.gem_search(experiment, root, theta_init)])
    levels: list[Node] = []
    for step in _steps(experiment.config):
        parent = levels[-1] if levels else None
        mask = _mask(experiment, step, theta_init, parent)  # line 8
        node = _level(experiment, root, theta_init, step, levels, mask)  # lines 2–7
        levels = [*levels[:-1], node] if step.again else [*levels, node]
    return SearchResult(theta_init, levels)


def _steps(config: SearchConfig) -> list[_Step]:
    """Return the trainings of a search, in order; the learning rate is constant in all but full ones."""
    full = METHODS[config.method].training == "full"
    # constant, as the paper has it for the warm-up and for every level
    warmup = config.final if full else Schedule(config.warmup_epochs, "constant")
    level = config.final if full else Schedule(config.level_epochs, "constant")
    prunings = [config.num_levels] if config.one_shot else list(range(1, config.num_levels + 1))
    prunes = METHODS[config.method].ranking is not None
    steps = [_Step(0, warmup, prunes=False), *(_Step(t, level, prunes) for t in prunings)]
    if config.order == "default":
        return steps
    # as printed: train, then prune; the last pruning is followed by no training
    last = _Step(config.num_levels, Schedule(0, "constant"), prunes, last=True)
    return [steps[0], _Step(0, level, prunes=False, again=True), *steps[1:-1], last]


def _mask(experiment: Experiment, step: _Step, theta_init: Checkpoint, parent: Node | None) -> Mask:
    if parent is None:
        return Mask.dense(theta_init.params, experiment.partition.prunable)
    ranking = METHODS[experiment.config.method].ranking
    if not step.prunes or ranking is None:
        return parent.mask
    values = ranking(parent.checkpoint.params, parent.mask, experiment.config.sgd_seed, step.level)
    mask = Plan.of(experiment.config).next_mask(values, parent.mask, step.level)
    experiment.world.require_equal(f"the mask of level {step.level}", _mask_digest(mask))
    return mask


def _level(
    experiment: Experiment, root: str, theta_init: Checkpoint, step: _Step, levels: list[Node], mask: Mask
) -> Node:
    """Train under mₜ from where the method starts; the learning rate is rewound because the optimizer is new."""
    config, level, schedule = experiment.config, step.level, step.schedule
    method = METHODS[config.method]
    parent = levels[-1] if levels else None
    before = parent.checkpoint if parent else theta_init
    rewind_steps = _rewind_steps(experiment) if method.rewinds_to_k else 0
    draft = Draft(
        determinants=level_determinants(experiment, root, step, parent, rewind_steps),
        kind="level",
        name=" ".join(
            [f"L{level:02d}", *step.phase.split(), f"d{mask.density:.3f} {config.method} {experiment.network}"]
        ),
        parents=(Parent(parent.key, _relation(step)) if parent else Parent(root, "initialised-from"),),
        nested_under=root,
        config=experiment.base_config(level=level, schedule=asdict(schedule)),
        tags=experiment.base_tags(method=config.method, init_seed=config.init_seed, sgd_seed=config.sgd_seed),
        level=level,
        epochs_before=before.epochs,
    )
    if step.again:
        draft.config["again"] = True
    if step.phase:
        draft.tags["phase"] = step.phase

    def make(draft: Draft, keeper: RunKeeper) -> tuple[Checkpoint, Mask]:
        origin = _origin(experiment, theta_init, levels)
        begun = method.start(origin.params, before.params, experiment.partition.norm)
        params = {name: tensor.clone() for name, tensor in begun.items()}
        mask.apply_(params)
        buffers = origin.buffers if method.needs_origin else before.buffers
        point = RewindPoint(rewind_steps, experiment.train_feed.steps_per_epoch) if method.rewinds_to_k else None
        trained = experiment.train(
            draft,
            keeper,
            Start(params, buffers, mask, theta_init.params),
            schedule=schedule,
            noise=SgdNoise(config.sgd_seed, search_scope(level, same=method.same_noise, again=step.again)),
            method=method,
            # full levels are measured as final trainings are: each is the retraining of its ticket
            reestimate=method.training == "short",
            begin_steps=rewind_steps if parent else 0,
            companion=point if parent is None else None,
        )
        if point is not None and parent is None:
            held = Checkpoint(point.params, experiment.world.share(point.buffers), 0, 0, draft.key)
            draft.networks[THETA_K] = held
        return trained

    return experiment.archive.once(draft, make)


def _relation(step: _Step) -> str:
    return "trained-from" if step.again else "pruned-from"


def _origin(experiment: Experiment, theta_init: Checkpoint, levels: list[Node]) -> Checkpoint:
    """Return [θ₀, buffers] as the method has them: θ_init, or θ_k of level 0."""
    if METHODS[experiment.config.method].rewinds_to_k and levels:
        return experiment.archive.network(levels[0].key, THETA_K)
    return theta_init


def _rewind_steps(experiment: Experiment) -> int:
    """Return k in optimizer steps; ValueError if the training ends before it."""
    config, steps_per_epoch = experiment.config, experiment.train_feed.steps_per_epoch
    steps = config.rewind_to * (steps_per_epoch if config.rewind_unit == "epochs" else 1)
    if steps >= config.final.epochs * steps_per_epoch:
        raise ValueError(
            f"rewind_to is {config.rewind_to} {config.rewind_unit}, but a training has {config.final.epochs} epochs of "
            f"{steps_per_epoch} steps; rewind to an earlier point"
        )
    return steps


def root_key(experiment: Experiment) -> str:
    """Return the key of a search: what all its levels share. Not the number of levels: a longer search goes on."""
    return sha256_json(_root_determinants(experiment))


def _root_determinants(experiment: Experiment) -> dict[str, Any]:
    config = experiment.config
    seeds = {"init_seed": config.init_seed, "sgd_seed": config.sgd_seed}
    begun = experiment.initialisation(_initialisation(config)).determinants
    return experiment.determinants | {"kind": "search", "method": config.method, **seeds, **begun}


def _initialisation(config: SearchConfig) -> str:
    """Return what θ_init is; the frozen weights of Gem-Miner are signed constants, whatever the network's own."""
    return "constant" if METHODS[config.method].scores else config.initialisation


def _root_name(experiment: Experiment) -> str:
    config = experiment.config
    name = f"{config.method} {experiment.network} {config.data.name} i{config.init_seed} s{config.sgd_seed}"
    begun = config.initialisation
    return name if begun == NETWORKS_OWN else f"{name} from {Path(begun).name[:24]}"


def level_determinants(
    experiment: Experiment, root: str, step: _Step, parent: Node | None, rewind_steps: int
) -> dict[str, Any]:
    """Return everything that determines a level's bits; what is unusual, and came later, is there only if it is so."""
    config = experiment.config
    method = METHODS[config.method]
    plan = Plan.of(config)
    pruned = step.prunes and config.densities is None
    unusual: dict[str, Any] = {}
    if method.rewinds_to_k:
        unusual["rewind_steps"] = rewind_steps
    if step.again:
        unusual["again"] = True
    return experiment.determinants | {
        "kind": "level",
        "root": root,
        "level": step.level,
        "schedule": step.schedule.determinants(),
        "pruning_fraction": config.pruning_fraction if pruned else None,
        **(plan.determinants(step.level) if step.prunes else {}),
        **unusual,
        "parent": parent.key if parent else root,
    }


def _commit_root(experiment: Experiment, theta_init: Checkpoint) -> str:
    """Record the search and its θ_init."""
    config = experiment.config
    key, begun = root_key(experiment), experiment.initialisation(_initialisation(config))
    record = LineageRecord(
        key=key,
        kind="search",
        name=_root_name(experiment),
        parents=(Parent(begun.key, "initialised-from"),) if begun.key else (),
        config=experiment.base_config(**begun.record),
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
        archive = experiment.archive
        if archive.find(key, []) is None:
            determinants = _root_determinants(experiment)
            archive.commit(record, determinants, lambda directory: theta_init.save(directory / THETA_INIT))
            archive.courier.settle()  # what is wrong with the store is said now, not after the first level
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
