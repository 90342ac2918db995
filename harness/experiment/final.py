"""Final trainings: a ticket used on a fresh initialisation with the full schedule, and the dense network beside it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from harness.checkpoint import Checkpoint
from harness.common.digest import sha256_json
from harness.common.seeds import SgdNoise
from harness.config import NETWORKS_OWN, Kind, SignsTaken, UnprunedSigns
from harness.experiment.experiment import Experiment, Start
from harness.experiment.initialisation import Initialisation
from harness.experiment.ticket import Ticket, take
from harness.lineage.nodes.record import Parent
from harness.masks import Mask, transfer
from harness.models import classifier_of
from harness.pruning import METHODS
from harness.runs.node import Draft, Node
from harness.runs.state_saver import RunKeeper


@dataclass(frozen=True)
class Trial:
    """One final training of a ticket: how it is used, and the two seeds."""

    kind: Kind
    init_seed: int
    """Draws the fresh θ_init; without influence on `retrain`, which draws none."""
    sgd_seed: int
    unpruned_signs: UnprunedSigns = "both"
    """Whether the signs of biases and of the classifier are transferred too."""
    signs: SignsTaken = "trained"
    """Whether the ticket is θ_T after training under m_T, or θ_{T−1} ⊙ m_T, right after pruning."""
    initialisation: str = NETWORKS_OWN
    """What the fresh θ_init is: see SearchConfig."""

    @property
    def drawn(self) -> int | None:
        """The init_seed, if it is asked for: what has no influence must not make another run."""
        return None if self.kind == "retrain" else self.init_seed

    @property
    def unusual(self) -> dict[str, str]:
        """Those of its ways to use the ticket, and θ_init, that are not the defaults."""
        usual = {field.name: field.default for field in fields(self)}
        names = ("unpruned_signs", "signs", "initialisation")
        return {name: value for name in names if (value := getattr(self, name)) != usual[name]}

    @property
    def needs_fresh_init(self) -> bool:
        """Whether the search's own θ_init would answer another question."""
        return self.kind not in ("dense", "retrain")


def final_training(experiment: Experiment, trial: Trial, ticket: Node | None, *, same_init: bool = False) -> Node:
    """Train `ticket` used as `trial` says with the full schedule, under plain 𝒜 (method, section 4).

    `dense` needs no ticket and ignores one. The search's own init_seed is a ValueError unless `same_init`: a sign that
    wins on its own initialisation alone is no winning sign. Of a method whose levels are full trainings `retrain` is
    the ticket's own run, which is returned; to ask for another sgd_seed or schedule than its own is a ValueError.

    A ticket of another data set is used without its classifier, which is drawn; `retrain` of it is refused.
    """
    if trial.kind == "dense":
        ticket = None
    elif ticket is None:
        raise ValueError(f"kind {trial.kind!r} needs a ticket")
    config = experiment.config
    used = None if ticket is None else take(experiment, ticket, trial.signs)
    if used is not None and used.transferred and trial.kind == "retrain":
        raise ValueError(
            "retrain goes on from the ticket's own weights, on its own data set; on another take signed_mask"
        )
    full = METHODS[config.method].training == "full"
    if ticket is not None and trial.kind == "retrain" and trial.signs == "trained" and full:
        return _own_retraining(experiment, trial, ticket)
    if trial.needs_fresh_init and trial.init_seed == config.init_seed and not same_init:
        raise ValueError(
            f"init_seed {trial.init_seed} is the search's own: choose another for a fresh initialisation, "
            "or pass --same-init"
        )
    start = _start(experiment, trial, used)
    begun = experiment.initialisation(trial.initialisation) if trial.drawn is not None else None
    draft = Draft(
        determinants=experiment.determinants
        | {
            "kind": "training",
            "used_as": trial.kind,
            "ticket": ticket.key if ticket else None,
            "start": start.digest,
            "schedule": config.final.determinants(),
            "init_seed": trial.drawn,
            "sgd_seed": trial.sgd_seed,
        },
        kind="training",
        name=_name(experiment, trial, ticket, start.mask),
        parents=_parents(trial, ticket, begun),
        config=experiment.base_config(
            kind=trial.kind,
            ticket=ticket.key if ticket else None,
            init_seed=trial.drawn,
            sgd_seed=trial.sgd_seed,
            unpruned_signs=trial.unpruned_signs,
            signs=trial.signs,
            transferred=used is not None and used.transferred,
            **(begun.record if begun else {}),
        ),
        tags=_tags(experiment, trial, used),
        level=ticket.checkpoint.level if ticket else 0,
        epochs_before=0,
        epochs_spent=ticket.checkpoint.epochs if ticket else 0,
    )

    def make(draft: Draft, keeper: RunKeeper) -> tuple[Checkpoint, Mask]:
        noise = SgdNoise(trial.sgd_seed, ("final",))
        # lrr is the plain algorithm 𝒜: no interpolation in a final training
        plain = METHODS["lrr"]
        return experiment.train(
            draft, keeper, start, schedule=config.final, noise=noise, method=plain, reestimate=False
        )

    return experiment.archive.once(draft, make)


def _own_retraining(experiment: Experiment, trial: Trial, ticket: Node) -> Node:
    """Return the level itself: it is trained from θ ⊙ m with the final schedule already (method, section 3)."""
    config = experiment.config

    def check() -> None:
        assert ticket.record is not None
        name, search = ticket.record.name, ticket.record.config["search"]
        for what, asked, own in (
            ("sgd_seed", trial.sgd_seed, search["sgd_seed"]),
            ("final epochs", config.final.epochs, search["final"]["epochs"]),
        ):
            if asked != own:
                raise ValueError(
                    f"retrain of {config.method} is the run {name!r} itself, trained with {what} {own}, not {asked}; "
                    f"search with {what} {asked}, or ask for {own}"
                )

    experiment.world.on_main(check)
    return ticket


def _start(experiment: Experiment, trial: Trial, ticket: Ticket | None) -> Start:
    drawn = trial.initialisation if trial.drawn is not None else NETWORKS_OWN
    theta_init = experiment.theta_init(trial.init_seed, drawn)
    if ticket is None:
        params, mask = theta_init.params, Mask.dense(theta_init.params, experiment.partition.prunable)
    else:
        params, mask = transfer.start(
            trial.kind,
            theta_init.params,
            ticket.params,
            ticket.signed_mask,
            seed=trial.init_seed,
            unpruned=transfer.unpruned_names(
                ticket.signed_mask, trial.unpruned_signs, classifier_of(experiment.config.model.name)
            ),
        )
    # running statistics start fresh, whatever the ticket's or a trained initialisation's were
    return Start(params, experiment.theta_init(trial.init_seed).buffers, mask, theta_init.params)


def _parents(trial: Trial, ticket: Node | None, begun: Initialisation | None) -> tuple[Parent, ...]:
    parents = []
    if ticket is not None:
        parents.append(Parent(ticket.key, "trained-from" if trial.kind == "retrain" else "masked-by"))
    if begun is not None and begun.key is not None:
        parents.append(Parent(begun.key, "initialised-from"))
    return tuple(parents)


def _tags(experiment: Experiment, trial: Trial, ticket: Ticket | None) -> dict[str, str]:
    tags = experiment.base_tags(kind_of_training=trial.kind, sgd_seed=trial.sgd_seed)
    unusual = trial.unusual | ({"transferred": "true"} if ticket is not None and ticket.transferred else {})
    if unusual:  # such a training is no trial of the usual one
        tags |= unusual | {"settings": sha256_json({"settings": experiment.settings} | unusual)[:12]}
    if trial.drawn is not None:
        tags["init_seed"] = str(trial.drawn)
    if ticket is not None:
        tags["method"] = experiment.config.method
    return tags


def _name(experiment: Experiment, trial: Trial, ticket: Node | None, mask: Mask) -> str:
    config = experiment.config
    words: list[str] = [trial.kind]
    if ticket is not None:
        words += [f"L{ticket.checkpoint.level:02d} d{mask.density:.3f} {config.method}"]
    words += [experiment.network] if trial.drawn is None else [experiment.network, f"i{trial.drawn}"]
    return " ".join([*words, f"s{trial.sgd_seed}"])
