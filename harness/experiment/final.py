"""Final trainings: a ticket on a fresh initialisation with the full schedule, or the dense network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch

from harness.common.seeds import SgdNoise
from harness.common.tensors import below, check_fits
from harness.config import NETWORKS_OWN, Kind, SignsTaken, UnprunedSigns, drawn_before
from harness.experiment.describe import describe_training
from harness.experiment.experiment import Experiment, Initialisation
from harness.experiment.trainer import Trainer
from harness.masks import Mask, SignedMask, transfer
from harness.pruning import METHODS, StartPoint
from harness.runs.run import FinishedRun


@dataclass(frozen=True)
class Trial:
    """Kind and seeds of one final training.

    Example:
        >>> harness.Trial("retrain", init_seed=2, sgd_seed=1).drawn is None
        True
    """

    kind: Kind
    init_seed: int
    """Seed of the fresh θ_init. `retrain` ignores it, because it draws none."""
    sgd_seed: int
    unpruned_signs: UnprunedSigns = "both"
    """Parameters outside the mask whose signs are transferred too."""
    signs: SignsTaken = "trained"
    """trained: use θ_T after training under m_T. pruned: use θ_{T−1} ⊙ m_T, right after pruning."""
    initialisation: str | Initialisation = NETWORKS_OWN
    """Initialisation of the fresh θ_init: the name of a scheme, or a resolved initialisation."""

    @property
    def drawn(self) -> int | None:
        """The init_seed, or None for `retrain`. So `retrain` with another init_seed is the same run."""
        return None if self.kind == "retrain" else self.init_seed

    @property
    def unusual(self) -> dict[str, str]:
        """Settings of the ticket and of θ_init that differ from their defaults."""
        usual = {field.name: field.default for field in fields(self)}
        begun = self.initialisation if isinstance(self.initialisation, str) else self.initialisation.text
        own: dict[str, str] = {"unpruned_signs": self.unpruned_signs, "signs": self.signs, "initialisation": begun}
        return {name: value for name, value in own.items() if value != usual[name]}


def final_training(
    experiment: Experiment, trial: Trial, ticket: FinishedRun | None = None, *, same_init: bool = False
) -> FinishedRun:
    """Run one final training: the full schedule under plain 𝒜 (paper, section 4).

    A ticket of another data set gets a new classifier. For methods whose levels are full trainings, `retrain` returns
    the run of the ticket itself. A finished run is loaded instead of repeated.

    Args:
        experiment: Network, data and schedule.
        trial: Kind and seeds.
        ticket: A level of a search. `dense` ignores it.
        same_init: Allow the search's own init_seed. A sign that wins only on its own initialisation is not a winning
            sign.

    Raises:
        ValueError: The ticket is missing or has another shape. `init_seed` is the search's own. `retrain` has another
            data set than the ticket. `retrain` of a full training has another sgd_seed or schedule.

    Returns:
        The finished run. `metric("test_error_percent")` is its top-1 test error (rank 0).

    Example:
        >>> trial = harness.Trial("signed_mask", init_seed=2, sgd_seed=1)
        >>> with harness.launch(config) as experiment:
        ...     ticket = harness.search(experiment).ticket
        ...     trained = harness.final_training(experiment, trial, ticket)
        >>> trained.mask.equal(ticket.mask)
        True
    """
    config, begun = experiment.config, Initialisation.of(trial.initialisation)
    if trial.kind == "dense":
        ticket = None
    elif ticket is None:
        raise ValueError(f"kind {trial.kind!r} needs a ticket")

    # Phase: take θ_T and s_T, without the classifier for another data set.
    used = None if ticket is None else take(experiment, ticket, trial.signs)
    if used is not None and used.transferred and trial.kind == "retrain":
        raise ValueError(
            "retrain continues from the ticket's weights on its own data set; use signed_mask on another data set"
        )
    if ticket is not None and trial.kind == "retrain" and trial.signs == "trained":
        own = METHODS[config.method].retraining(ticket)
        if own is not None:
            experiment.world.on_main(lambda: _check_own_retraining(experiment, trial, own))
            return own
    if trial.kind not in ("dense", "retrain") and trial.init_seed == config.init_seed and not same_init:
        raise ValueError(
            f"init_seed {trial.init_seed} is the search's own: choose another for a fresh initialisation, "
            "or pass --same-init"
        )
    if ticket is not None and same_init and trial.init_seed == config.init_seed and begun.text == NETWORKS_OWN:
        experiment.world.on_main(lambda: _check_same_draw(ticket))

    # Phase: make the start point, a fresh θ_init with the signs and the mask of the ticket.
    fresh = experiment.theta_init(trial.init_seed)
    usual = trial.drawn is None or begun.text == NETWORKS_OWN
    theta_init = fresh if usual else experiment.theta_init(trial.init_seed, begun)
    if used is None:
        params, mask = theta_init.params, Mask.dense(theta_init.params, experiment.partition.prunable)
    else:
        names = transfer.unpruned_names(used.signed_mask, trial.unpruned_signs, experiment.classifier)
        params, mask = transfer.start(
            trial.kind, theta_init.params, used.params, used.signed_mask, seed=trial.init_seed, unpruned=names
        )
    # Running statistics always start fresh. Those of the ticket or of a trained initialisation are not used.
    start = StartPoint(params, fresh.buffers, mask, epochs_spent=ticket.checkpoint.epochs if ticket else 0)

    # Phase: train it without interpolation, or load the finished run.
    transferred = used is not None and used.transferred
    description = describe_training(
        experiment,
        trial,
        ticket,
        mask,
        start.digest,
        begun=None if trial.drawn is None else begun,
        transferred=transferred,
    )

    noise = SgdNoise(trial.sgd_seed, ("final",))
    return experiment.archive.run_or_load(
        description,
        lambda saver: Trainer(experiment).train(
            description, saver, start, schedule=config.final, noise=noise, psi_init=theta_init.params
        ),
    )


def _check_same_draw(ticket: FinishedRun) -> None:
    """Raise ValueError if the search's init_seed draws another θ_init today than it did then (rank 0)."""
    assert ticket.record is not None
    record = ticket.record
    if (before := drawn_before(record.tags["model"], record.config)) is not None:
        raise ValueError(
            f"the search of {record.name!r} drew its θ_init differently ({before}), so its seed draws another one "
            f"today; --initialisation {(record.nested_under or '')[:16]} uses the search's own θ_init"
        )


def _check_own_retraining(experiment: Experiment, trial: Trial, ticket: FinishedRun) -> None:
    """Raise ValueError if sgd_seed or schedule differ from those of the level's training (rank 0)."""
    assert ticket.record is not None
    config, name, search = experiment.config, ticket.record.name, ticket.record.config["search"]
    for setting, asked, own in (
        ("sgd_seed", trial.sgd_seed, search["sgd_seed"]),
        ("final epochs", config.final.epochs, search["final"]["epochs"]),
        ("lr_schedule", config.final.lr_schedule, search["final"]["lr_schedule"]),
    ):
        if asked != own:
            raise ValueError(
                f"retrain of {config.method} is the run {name!r} itself, trained with {setting} {own}, not {asked}; "
                f"search with {setting} {asked}, or ask for {own}"
            )


@dataclass(frozen=True)
class Ticket:
    """[θ_T, s_T] of a level, prepared for a final training."""

    params: dict[str, torch.Tensor]
    signed_mask: SignedMask
    transferred: bool
    """Whether the final training uses another data set. Then the ticket has no classifier."""


def take(experiment: Experiment, run: FinishedRun, signs: SignsTaken) -> Ticket:
    """Return the ticket of a level for a final training on the experiment's data set.

    Raises:
        ValueError: With `signs` = pruned, the level was not pruned from another one. Or the ticket does not fit the
            experiment's network. The classifier is not compared.
    """
    params, signed_mask = run.checkpoint.params, run.signed_mask
    if signs == "pruned":
        before = experiment.archive.load(_pruned_from(experiment, run), fitting=False)
        params, signed_mask = transfer.pruned_ticket(before.checkpoint.params, signed_mask)
    own_data = experiment.source.content_digest
    transferred = experiment.world.main_says(
        lambda: run.record is not None and run.record.tags["data_digest"] != own_data
    )
    if transferred:
        signed_mask = transfer.without_classifier(signed_mask, experiment.classifier)
        check_carries_over(experiment, signed_mask.signs)
    return Ticket(params, signed_mask, transferred)


def check_carries_over(experiment: Experiment, network: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError if a network of another data set does not fit. The classifier is not compared."""
    theirs = {n: tensor.shape for n, tensor in network.items() if not n.startswith(below(experiment.classifier))}
    own = {name: tensor.shape for name, tensor in experiment.archive.template.params.items()}
    check_fits(theirs, own, f"a ticket that goes over to {experiment.config.data.name}")


def _pruned_from(experiment: Experiment, run: FinishedRun) -> str:
    """Return the key of the level that was pruned to make this mask."""

    def read() -> str:
        assert run.record is not None
        found = [parent.key for parent in run.record.parents if parent.relation == "pruned-from"]
        if not found:
            raise ValueError(
                f"{run.record.name!r} was not pruned from another level, so it has no signs right after pruning; "
                "use signs=trained"
            )
        return found[0]

    return experiment.world.share_text(experiment.world.on_main(read) or "")
