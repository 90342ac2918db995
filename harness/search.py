"""Algorithm 1: the level loop that finds a winning sign, and the final trainings that use it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from harness import transfer
from harness.checkpoint import Checkpoint
from harness.config import Schedule
from harness.digest import sha256_tensors
from harness.experiment import Draft, Experiment, Node, Start, find, now_ms
from harness.lineage.code import code_version
from harness.lineage.record import LineageRecord, Parent
from harness.masks import Mask
from harness.pruning import METHODS, prune
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
    schedule = Schedule(config.warmup_epochs if parent is None else config.level_epochs, "constant")
    key = level_key(experiment, root, level, schedule, parent)
    origin = parent.checkpoint if parent else theta_init
    draft = Draft(
        key=key,
        kind="level",
        name=f"{config.method} {config.model.name} L{level:02d} d{mask.density:.3f}",
        parents=(Parent(parent.key, "pruned-from") if parent else Parent(root, "initialised-from"),),
        nested_under=root,
        config=experiment.base_config(level=level, schedule=asdict(schedule)),
        tags=experiment.base_tags(method=config.method, init_seed=config.init_seed, sgd_seed=config.sgd_seed),
        level=level,
        epochs_before=origin.epochs,
    )

    def make(draft: Draft) -> tuple[Checkpoint, Mask]:
        params = {name: tensor.clone() for name, tensor in method.start(theta_init.params, origin.params).items()}
        mask.apply_(params)
        start = Start(params, origin.buffers, mask, theta_init.params)
        noise = SgdNoise(config.sgd_seed, ("search", level))
        return experiment.train(draft, start, schedule=schedule, noise=noise, method=method, search=True)

    return experiment.once(draft, make, theta_init)


def root_key(experiment: Experiment) -> str:
    """Return the key of a search: what all its levels share. Not the number of levels: a longer search goes on."""
    config = experiment.config
    seeds = {"init_seed": config.init_seed, "sgd_seed": config.sgd_seed}
    return experiment.key(kind="search", method=config.method, **seeds)


def level_key(experiment: Experiment, root: str, level: int, schedule: Schedule, parent: Node | None) -> str:
    """Return the level digest: everything that determines the level's bits."""
    fraction = experiment.config.pruning_fraction if parent else None
    return experiment.key(
        kind="level",
        root=root,
        level=level,
        schedule=asdict(schedule),
        pruning_fraction=fraction,
        parent=parent.key if parent else root,
    )


def _commit_root(experiment: Experiment, theta_init: Checkpoint) -> str:
    """Record the search and its θ_init."""
    config = experiment.config
    key = root_key(experiment)
    record = LineageRecord(
        key=key,
        kind="search",
        name=f"{config.method} {config.model.name} {config.data.name} i{config.init_seed} s{config.sgd_seed}",
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
            experiment.commit(record, lambda directory: theta_init.save(directory / THETA_INIT))
            return
        recorded = experiment.store.local.load(key).tags["theta_init_digest"]
        if recorded != theta_init.digest:
            raise ValueError(
                f"θ_init of seed {config.init_seed} is now {theta_init.digest[:12]}…, but this search began from "
                f"{recorded[:12]}… (another torch version or model code?); use another --runs and tracking store"
            )

    experiment.world.on_main(commit)
    return key


def final_training(
    experiment: Experiment,
    kind: str,
    ticket: Node | None,
    *,
    init_seed: int,
    sgd_seed: int,
    layer_signs: bool = True,
    same_init: bool = False,
) -> Node:
    """Train `ticket` used as `kind` says on a fresh initialisation, with the full schedule (method, section 4).

    `dense` needs no ticket. `retrain` draws no θ_init: `init_seed` has no influence on it. The search's own init_seed
    is a ValueError unless `same_init`: a sign that wins on its own initialisation alone is no winning sign.
    """
    if ticket is None and kind != "dense":
        raise ValueError(f"kind {kind!r} needs a ticket")
    config = experiment.config
    if init_seed == config.init_seed and kind not in ("dense", "retrain") and not same_init:
        raise ValueError(
            f"init_seed {init_seed} is the search's own: choose another for a fresh initialisation, or pass --same-init"
        )
    theta_init = experiment.theta_init(init_seed)
    if kind == "dense":
        params, mask = theta_init.params, Mask.dense(theta_init.params, experiment.partition.prunable)
    else:
        assert ticket is not None
        params, mask = transfer.start(
            kind,
            theta_init.params,
            ticket.checkpoint.params,
            ticket.signed_mask,
            seed=init_seed,
            unpruned=layer_signs,
        )
    # running statistics start fresh, whatever the ticket's were
    start = Start(params, theta_init.buffers, mask, theta_init.params)
    # dense and retrain do not depend on all of the settings: what has no influence must not make another run
    source = None if kind == "dense" or ticket is None else ticket
    drawn = None if kind == "retrain" else init_seed
    key = experiment.key(
        kind="training",
        used_as=kind,
        ticket=source.key if source else None,
        start=start.digest,
        schedule=asdict(config.final),
        init_seed=drawn,
        sgd_seed=sgd_seed,
    )
    draft = Draft(
        key=key,
        kind="training",
        name=_training_name(experiment, kind, source, mask, drawn, sgd_seed),
        parents=_training_parents(kind, source),
        config=experiment.base_config(
            kind=kind,
            ticket=source.key if source else None,
            init_seed=drawn,
            sgd_seed=sgd_seed,
            layer_signs=layer_signs,
        ),
        tags=experiment.base_tags(kind_of_training=kind, sgd_seed=sgd_seed)
        | ({} if drawn is None else {"init_seed": str(drawn)})
        | ({"method": config.method} if source else {}),
        level=source.checkpoint.level if source else 0,
        epochs_before=0,
    )

    def make(draft: Draft) -> tuple[Checkpoint, Mask]:
        noise = SgdNoise(sgd_seed, ("final",))
        # always the plain algorithm 𝒜: no interpolation in a final training
        return experiment.train(draft, start, schedule=config.final, noise=noise, method=METHODS["lrr"], search=False)

    return experiment.once(draft, make, theta_init)


def _training_parents(kind: str, ticket: Node | None) -> tuple[Parent, ...]:
    if ticket is None:
        return ()
    return (Parent(ticket.key, "trained-from" if kind == "retrain" else "masked-by"),)


def _training_name(
    experiment: Experiment, kind: str, ticket: Node | None, mask: Mask, init_seed: int | None, sgd_seed: int
) -> str:
    words = [kind, experiment.config.method] if ticket else [kind]
    words += [experiment.config.model.name]
    if ticket:
        words += [f"L{ticket.checkpoint.level:02d} d{mask.density:.3f}"]
    if init_seed is not None:
        words += [f"i{init_seed}"]
    return " ".join([*words, f"s{sgd_seed}"])


def _mask_digest(mask: Mask) -> str:
    return sha256_tensors({name: tensor.to(torch.uint8) for name, tensor in mask.tensors.items()})
