"""What can be proved of Gem-Miner's runs: the count, the start, and the network that its scores make.

Which weights were frozen when is not recorded: that the mask is that of the lowest scores at each time is not proved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from harness.common.digest import sha256_tensors
from harness.config import search_from_json
from harness.lineage.nodes.record import LineageRecord
from harness.lineage.proof.findings import Finding
from harness.lineage.proof.networks import Network, Params
from harness.pruning import Plan
from harness.pruning.gem_miner import draw_scores, effective, kept_counts, num_freezings, start


def trains_scores(record: LineageRecord) -> bool:
    """Whether a run trained the scores, not the weights after them."""
    return bool(record.parents) and record.parents[0].relation == "initialised-from"


def scores_level(record: LineageRecord, own: Network, theta_init: Params) -> Iterator[Finding]:
    """The mask has the right count, and the network is w₀ · q · 1[p > ½] of the recorded scores."""
    if own.signed_mask is None:
        return
    mask, config = own.signed_mask.mask, search_from_json(record.config["search"])
    gem, density = config.gem_miner, Plan.of(config).density(int(record.tags["level"]))
    freezings = num_freezings(gem.score_epochs, gem.freeze_every_epochs)
    expected, found = kept_counts(mask.numel, density, freezings)[-1], mask.num_remaining
    yield Finding("count", found == expected, f"{found} weights remain; {expected} should")
    if own.checkpoint is None or own.scores is None or not theta_init:
        return
    made = dict(start(theta_init, {}, own.signed_mask.norm))
    for name, kept in mask.tensors.items():
        made[name] = effective(theta_init[name], kept, own.scores.params[name])
    differ = [name for name, tensor in own.checkpoint.params.items() if not torch.equal(tensor, made[name])]
    yield Finding("pruned", not differ, f"{', '.join(differ[:3])} are not what the scores make of the frozen weights")


def scores_start(own: Network, theta_init: Params, init_seed: int) -> str | None:
    """Return the digest of the scores that the seed draws, with the weights around them; None if θ_init is not here."""
    if own.signed_mask is None or not theta_init:
        return None
    shapes: Mapping[str, torch.Size] = own.signed_mask.mask.shapes()
    weights = dict(start(theta_init, {}, own.signed_mask.norm))
    return sha256_tensors(weights | draw_scores(shapes, init_seed))


def finetuned_level(own: Network, parent: Network) -> Iterator[Finding]:
    """Fine-tuning keeps the mask that was learnt."""
    if own.signed_mask is None or parent.signed_mask is None:
        return
    same = own.signed_mask.mask.equal(parent.signed_mask.mask)
    yield Finding("mask", same, "its mask is not the one that the scores gave")
