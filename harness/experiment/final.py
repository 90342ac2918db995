"""Final trainings: a ticket used on a fresh initialisation with the full schedule, and the dense network beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch

from harness.common.seeds import SgdNoise
from harness.common.tensors import check_fits
from harness.config import NETWORKS_OWN, Kind, SignsTaken, UnprunedSigns, drawn_before
from harness.experiment.describe import describe_training
from harness.experiment.experiment import Experiment, Initialisation
from harness.experiment.trainer import Trainer
from harness.masks import Mask, SignedMask, transfer
from harness.pruning import METHODS, StartPoint
from harness.runs.run import FinishedRun


@dataclass(frozen=True)
class Trial:
    """One final training of a ticket: how it is used, and the two seeds.

    Example:
        >>> harness.Trial("retrain", init_seed=2, sgd_seed=1).drawn is None
        True
    """

    kind: Kind
    init_seed: int
    """Draws the fresh θ_init; without influence on `retrain`, which draws none."""
    sgd_seed: int
    unpruned_signs: UnprunedSigns = "both"
    """Whether the signs of biases and of the classifier are transferred too."""
    signs: SignsTaken = "trained"
    """Whether the ticket is θ_T after training under m_T, or θ_{T−1} ⊙ m_T, right after pruning."""
    initialisation: str | Initialisation = NETWORKS_OWN
    """The fresh θ_init: a scheme's name, or a resolved initialisation."""

    @property
    def drawn(self) -> int | None:
        """The init_seed; None for `retrain`, which draws no θ_init, so that another seed makes no second run."""
        return None if self.kind == "retrain" else self.init_seed

    @property
    def unusual(self) -> dict[str, str]:
        """The uses of the ticket, and of θ_init, that are not the defaults."""
        usual = {field.name: field.default for field in fields(self)}
        begun = self.initialisation if isinstance(self.initialisation, str) else self.initialisation.text
        own: dict[str, str] = {"unpruned_signs": self.unpruned_signs, "signs": self.signs, "initialisation": begun}
        return {name: value for name, value in own.items() if value != usual[name]}


def final_training(
    experiment: Experiment, trial: Trial, ticket: FinishedRun | None = None, *, same_init: bool = False
) -> FinishedRun:
    """Train `ticket` used as `trial` says with the full schedule, under plain 𝒜 (method, section 4).

    A ticket of another data set is used without its classifier, which is drawn. Of a method whose levels are full
    trainings, `retrain` is the ticket's own run, which is returned.

    Args:
        experiment: Network, data and schedule.
        trial: The use and the seeds.
        ticket: A level of a search; `dense` needs none and ignores one.
        same_init: Allow the search's own init_seed: a sign that wins on its own initialisation alone is no winning
            sign.

    Raises:
        ValueError: No ticket, the search's own init_seed, a network of another shape, `retrain` on another data set, or
            `retrain` of a full training with another sgd_seed or schedule than its own.

    Returns:
        The finished run; `metric("test_error_percent")` is its top-1 error (rank 0).

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

    # Take θ_T and s_T as the trial says, without the classifier for another data set.
    used = None if ticket is None else take(experiment, ticket, trial.signs)
    if used is not None and used.transferred and trial.kind == "retrain":
        raise ValueError(
            "retrain goes on from the ticket's own weights, on its own data set; on another take signed_mask"
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

    # Make the start point: a fresh θ_init with the signs and the mask of the ticket.
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
    # running statistics start fresh, whatever the ticket's or a trained initialisation's were
    start = StartPoint(params, fresh.buffers, mask, epochs_spent=ticket.checkpoint.epochs if ticket else 0)

    # Train it: plain SGD, no interpolation.
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
    """Refuse the search's own seed where it draws another θ_init today than it did then (rank 0)."""
    assert ticket.record is not None
    record = ticket.record
    if (before := drawn_before(record.tags["model"], record.config)) is not None:
        raise ValueError(
            f"the search of {record.name!r} drew its θ_init the other way ({before}), and its seed draws another one "
            f"today; --initialisation {(record.nested_under or '')[:16]} takes that of the search itself"
        )


def _check_own_retraining(experiment: Experiment, trial: Trial, ticket: FinishedRun) -> None:
    """Refuse another sgd_seed or schedule than the level was trained with (rank 0)."""
    assert ticket.record is not None
    config, name, search = experiment.config, ticket.record.name, ticket.record.config["search"]
    for setting, asked, own in (
        ("sgd_seed", trial.sgd_seed, search["sgd_seed"]),
        ("final epochs", config.final.epochs, search["final"]["epochs"]),
    ):
        if asked != own:
            raise ValueError(
                f"retrain of {config.method} is the run {name!r} itself, trained with {setting} {own}, not {asked}; "
                f"search with {setting} {asked}, or ask for {own}"
            )


@dataclass(frozen=True)
class Ticket:
    """[θ_T, s_T] of a level, as it is used."""

    params: dict[str, torch.Tensor]
    signed_mask: SignedMask
    transferred: bool
    """Whether it goes to another data set than its own, without its classifier."""


def take(experiment: Experiment, run: FinishedRun, signs: SignsTaken) -> Ticket:
    """Return the ticket of a level for a final training on the experiment's data set.

    Raises ValueError where the level was not pruned from another (`signs` = pruned), and for a network of another
    shape than the experiment's, the classifier aside.
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
    """Raise a ValueError that names what keeps another data set's network, its classifier aside, from being used."""
    theirs = {n: tensor.shape for n, tensor in network.items() if not n.startswith(f"{experiment.classifier}.")}
    own = {name: tensor.shape for name, tensor in experiment.archive.template.params.items()}
    check_fits(theirs, own, f"a ticket that goes over to {experiment.config.data.name}")


def _pruned_from(experiment: Experiment, run: FinishedRun) -> str:
    """Return the key of the level whose pruning made this one's mask."""

    def read() -> str:
        assert run.record is not None
        found = [parent.key for parent in run.record.parents if parent.relation == "pruned-from"]
        if not found:
            raise ValueError(
                f"{run.record.name!r} was not pruned from another level: it has no signs right after pruning; "
                "take signs=trained"
            )
        return found[0]

    return experiment.world.share_text(experiment.world.on_main(read) or "")
