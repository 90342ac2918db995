"""Inject single faults into runs of several methods and options.

Only the matching check of the verification may fail.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch

from harness.checkpoint import Checkpoint
from harness.config import search_from_json
from harness.experiment.experiment import Experiment
from harness.experiment.search import SearchResult, search
from harness.lineage.proof import networks
from harness.lineage.proof.findings import Finding
from harness.lineage.proof.networks import StoredNetwork
from harness.masks import Mask
from harness.pruning import METHODS, LevelContext
from harness.pruning.wr import THETA_K
from harness.runs.run import FinishedRun
from tests.pruning.searching import tag

OPTIONS: dict[str, dict[str, object]] = {
    "imp": {},
    "random": {},
    "lrr_bn_rewind": {},
    "wr": {},
    "by layer": {"pruning_scope": "layer"},
    "by density": {"densities": (0.5, 0.1)},
    "in one shot": {"one_shot": True},
}


@pytest.fixture(params=list(OPTIONS))
def found(request: pytest.FixtureRequest, experiment: Experiment) -> SearchResult:
    method = request.param if request.param in ("imp", "random", "lrr_bn_rewind", "wr") else "lrr"
    return search(experiment.using(method, **OPTIONS[request.param]))  # type: ignore[arg-type]


def network(node: FinishedRun) -> StoredNetwork:
    return StoredNetwork(node.checkpoint, node.signed_mask)


def remasked(node: FinishedRun, alive: int, dead: int) -> StoredNetwork:
    """Return the network of a run with a wrong mask.

    Args:
        node: The run.
        alive: Number of pruned weights of the largest tensor that are kept again.
        dead: Number of kept weights of this tensor that are pruned.
    """
    tensors = {name: kept.clone() for name, kept in node.mask.tensors.items()}
    largest = max(tensors.values(), key=torch.numel)
    raised, killed = (~largest).nonzero()[:alive], largest.nonzero()[:dead]
    for index in raised:
        largest[tuple(index)] = True
    for index in killed:
        largest[tuple(index)] = False
    return replace(network(node), signed_mask=replace(node.signed_mask, mask=Mask(tensors)))


def context(node: FinishedRun, mask: Mask, parent: Checkpoint, origin: Checkpoint) -> LevelContext:
    """Build the context of a level as `verify` does.

    Args:
        node: The level.
        mask: Its mask.
        parent: Checkpoint of the parent level.
        origin: Used as θ_init and as θ_k.
    """
    assert node.record is not None
    config, norm = search_from_json(node.record.config["search"]), node.signed_mask.norm
    return LevelContext(config, node.checkpoint.level, mask, norm, origin, parent, {THETA_K: origin}.__getitem__)


def wrong(claims: Iterable[Finding]) -> set[str]:
    return {claim.check for claim in claims if not claim.holds}


def test_a_mask_with_wrong_weights_or_a_wrong_count_is_found(found: SearchResult) -> None:
    before, node = found.levels[:2]

    def faults(own: StoredNetwork) -> set[str]:
        assert node.record is not None and own.signed_mask is not None
        ctx = context(node, own.signed_mask.mask, before.checkpoint, found.theta_init)
        return wrong(networks.masks(node.record, ctx, own, network(before)))

    assert faults(network(node)) == set()
    assert faults(remasked(node, 1, 1)) == {"pruned"}
    assert faults(remasked(node, 1, 0)) == {"pruned", "count"}


def test_a_wrong_start_has_another_digest(experiment: Experiment, found: SearchResult) -> None:
    method = tag(found.ticket, "method")
    before, node = found.levels[-2:]
    origin = found.theta_init
    if method == "wr":
        origin = experiment.archive.network(found.levels[0].key, THETA_K)

    def begun(parent: Checkpoint, origin: Checkpoint) -> str:
        return METHODS[method].start(context(node, node.mask, parent, origin)).digest

    own = begun(before.checkpoint, origin)
    assert own == tag(node, "start_digest")
    if method in ("imp", "wr", "lrr_bn_rewind"):
        other = replace(origin, params={name: tensor + 0.1 for name, tensor in origin.params.items()})
        assert begun(before.checkpoint, other) != own
    if method in ("lrr", "random", "lrr_bn_rewind"):
        assert begun(node.checkpoint, origin) != own
