"""A ticket as a final training takes it: after training or right after pruning, on its own data set or on another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from harness.config import SignsTaken
from harness.experiment.experiment import Experiment
from harness.masks import SignedMask, check_fits, transfer
from harness.masks.transfer import Params
from harness.models import classifier_of
from harness.runs.node import Node


@dataclass(frozen=True)
class Ticket:
    """[θ_T, s_T] of a level, as it is used."""

    node: Node
    params: Params
    signed_mask: SignedMask
    transferred: bool
    """Whether it goes to another data set than its own, without its classifier."""


def take(experiment: Experiment, node: Node, signs: SignsTaken) -> Ticket:
    """Return the ticket of a level for a final training on the experiment's data set.

    Raises ValueError where the level was not pruned from another (`signs` = pruned), and for a network of another
    shape than the experiment's, the classifier aside.
    """
    params, signed_mask = node.checkpoint.params, node.signed_mask
    if signs == "pruned":
        before = experiment.archive.load(_pruned_from(experiment, node), fitting=False)
        params, signed_mask = transfer.pruned_ticket(before.checkpoint.params, signed_mask)
    transferred = is_foreign(experiment, node)
    if transferred:
        signed_mask = transfer.without_classifier(signed_mask, classifier_of(experiment.config.model.name))
        check_carries_over(experiment, signed_mask.signs)
    return Ticket(node, params, signed_mask, transferred)


def check_carries_over(experiment: Experiment, network: Mapping[str, torch.Tensor]) -> None:
    """Raise a ValueError that names what keeps another data set's network, its classifier aside, from being used."""
    classifier = f"{classifier_of(experiment.config.model.name)}."
    theirs = {name: tensor.shape for name, tensor in network.items() if not name.startswith(classifier)}
    own = {name: tensor.shape for name, tensor in experiment.archive.template.params.items()}
    check_fits(theirs, own, f"a ticket that goes over to {experiment.config.data.name}")


def is_foreign(experiment: Experiment, node: Node) -> bool:
    """Whether a run was made from other data than the experiment's; the same answer on every rank."""

    def differs() -> bool:
        assert node.record is not None
        return node.record.tags["data_digest"] != experiment.source.content_digest

    return experiment.world.share_flag(bool(experiment.world.on_main(differs)))


def _pruned_from(experiment: Experiment, node: Node) -> str:
    """Return the key of the level whose pruning made this one's mask."""

    def read() -> str:
        assert node.record is not None
        found = [parent.key for parent in node.record.parents if parent.relation == "pruned-from"]
        if not found:
            raise ValueError(
                f"{node.record.name!r} was not pruned from another level: it has no signs right after pruning; "
                "take signs=trained"
            )
        return found[0]

    return experiment.world.share_text(experiment.world.on_main(read) or "")
