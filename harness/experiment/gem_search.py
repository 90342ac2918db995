"""Gem-Miner's search: scores over frozen weights, then fine-tuning; one density, not a level after another.

`num_levels` T and the pruning fraction (or the list of densities) say which density: that of level T. Both trainings
are runs of level T, the second trained-from the first.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from harness.checkpoint import Checkpoint
from harness.common.seeds import SgdNoise
from harness.config import OptimConfig, Schedule, SearchConfig
from harness.experiment.experiment import Experiment, Start
from harness.lineage.nodes.record import Parent
from harness.masks import Mask
from harness.models import classifier_of
from harness.pruning import METHODS, Plan, gem_miner
from harness.runs.node import Draft, Node
from harness.runs.state_saver import RunKeeper


def check(config: SearchConfig) -> None:
    """Refuse what Gem-Miner has not."""
    if config.num_levels == 0:
        raise ValueError("gem_miner learns the mask of level num_levels; it must be 1 or more")
    usual = {"order": "default", "one_shot": False, "pruning_scope": "global"}
    if given := [name for name, value in usual.items() if getattr(config, name) != value]:
        raise ValueError(f"gem_miner learns one mask of all layers together: leave out {', '.join(given)}")
    if config.initialisation not in ("network", "constant"):
        raise ValueError(f"gem_miner's weights are signed constants; initialisation {config.initialisation} is not")


def gem_search(experiment: Experiment, root: str, theta_init: Checkpoint) -> Node:
    """Return the fine-tuned network: [θ_T, m_T], m_T = q."""
    level = experiment.config.num_levels
    scored = _scored(experiment)
    found = _train_scores(experiment, root, theta_init, level, scored)
    return _finetune(experiment, root, theta_init, level, found)


def _scored(experiment: Experiment) -> list[str]:
    """Return the weights that have scores: the prunable ones, and the classifier's."""
    head = f"{classifier_of(experiment.config.model.name)}.weight"
    return sorted(experiment.partition.prunable | {head} & experiment.archive.template.params.keys())


def _train_scores(experiment: Experiment, root: str, theta_init: Checkpoint, level: int, scored: list[str]) -> Node:
    config, gem = experiment.config, experiment.config.gem_miner
    optim, schedule = gem.scoring()
    density = Plan.of(config).density(level)
    freezing = {"density": density, "freeze_every_epochs": gem.freeze_every_epochs}
    draft = _draft(experiment, root, level, optim, schedule, Parent(root, "initialised-from"), scores=freezing)
    draft.tags["phase"] = "scores"
    draft.name = f"L{level:02d} scores d{density:.3f} {config.method} {experiment.network}"

    def make(draft: Draft, keeper: RunKeeper) -> tuple[Checkpoint, Mask]:
        weights = gem_miner.start(theta_init.params, {}, experiment.partition.norm)
        scores = gem_miner.draw_scores({name: weights[name].shape for name in scored}, config.init_seed)
        start = Start(dict(weights) | scores, theta_init.buffers, Mask.dense(weights, scored), theta_init.params)
        return experiment.train(
            draft,
            keeper,
            start,
            schedule=schedule,
            noise=SgdNoise(config.sgd_seed, ("search", level, "scores")),
            method=METHODS[config.method],
            reestimate=True,
            optim=optim,
            scoring=gem_miner.ScoreTraining(weights, scored, density, schedule.epochs, gem.freeze_every_epochs),
            frozen=weights.keys() - scores.keys(),
        )

    return experiment.archive.once(draft, make)


def _finetune(experiment: Experiment, root: str, theta_init: Checkpoint, level: int, found: Node) -> Node:
    config = experiment.config
    optim, schedule = config.gem_miner.finetuning()
    draft = _draft(experiment, root, level, optim, schedule, Parent(found.key, "trained-from"))
    draft.name = f"L{level:02d} d{found.mask.density:.3f} {config.method} {experiment.network}"
    draft.epochs_before = found.checkpoint.epochs

    def make(draft: Draft, keeper: RunKeeper) -> tuple[Checkpoint, Mask]:
        norm = experiment.partition.norm
        params = {name: t.clone() for name, t in gem_miner.start(theta_init.params, {}, norm).items()}
        found.mask.apply_(params)
        return experiment.train(
            draft,
            keeper,
            Start(params, theta_init.buffers, found.mask, theta_init.params),
            schedule=schedule,
            noise=SgdNoise(config.sgd_seed, ("search", level, "finetune")),
            method=METHODS[config.method],
            reestimate=False,
            optim=optim,
            frozen=norm | {name for name in params if gem_miner.is_bias(name)},
        )

    return experiment.archive.once(draft, make)


def _draft(
    experiment: Experiment,
    root: str,
    level: int,
    optim: OptimConfig,
    schedule: Schedule,
    parent: Parent,
    scores: dict[str, Any] | None = None,
) -> Draft:
    config = experiment.config
    determinants = {"kind": "level", "root": root, "level": level, "schedule": schedule.determinants()}
    determinants |= {"optim": optim.determinants(), "parent": parent.key, "pruning_fraction": None}
    return Draft(
        determinants=experiment.determinants | determinants | ({"scores": scores} if scores else {}),
        kind="level",
        name="",
        parents=(parent,),
        nested_under=root,
        config=experiment.base_config(
            level=level, schedule=asdict(schedule), optim=optim.determinants(), scores=scores
        ),
        tags=experiment.base_tags(method=config.method, init_seed=config.init_seed, sgd_seed=config.sgd_seed),
        level=level,
        epochs_before=0,
    )
