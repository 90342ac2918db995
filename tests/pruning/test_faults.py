"""Faults in runs of the new methods and options, with nothing else wrong: the claim meant for each does not hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from searching import tag

from harness.experiment.experiment import Experiment
from harness.experiment.search import THETA_K, SearchResult, search
from harness.lineage.proof import networks
from harness.lineage.proof.findings import Finding
from harness.lineage.proof.networks import Network
from harness.masks import Mask
from harness.runs.run import FinishedRun

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


def network(node: FinishedRun) -> Network:
    return Network(node.checkpoint, node.signed_mask)


def remasked(node: FinishedRun, alive: int, dead: int) -> Network:
    """`alive` dead weights of the largest tensor are kept again, `dead` living ones pruned."""
    tensors = {name: kept.clone() for name, kept in node.mask.tensors.items()}
    largest = max(tensors.values(), key=torch.numel)
    raised, killed = (~largest).nonzero()[:alive], largest.nonzero()[:dead]
    for index in raised:
        largest[tuple(index)] = True
    for index in killed:
        largest[tuple(index)] = False
    return replace(network(node), signed_mask=replace(node.signed_mask, mask=Mask(tensors)))


def wrong(claims: Iterable[Finding]) -> set[str]:
    return {claim.check for claim in claims if not claim.holds}


def test_a_mask_of_other_weights_or_another_count(found: SearchResult) -> None:
    before, node = found.levels[:2]
    record = node.record
    assert record is not None
    assert wrong(networks.masks(record, network(node), network(before))) == set()
    assert wrong(networks.masks(record, remasked(node, 1, 1), network(before))) == {"pruned"}
    assert wrong(networks.masks(record, remasked(node, 1, 0), network(before))) == {"pruned", "count"}


def test_a_start_from_elsewhere(experiment: Experiment, found: SearchResult) -> None:
    method = tag(found.ticket, "method")
    before, node = found.levels[-2:]
    origin = found.theta_init.params
    if method == "wr":
        origin = experiment.archive.network(found.levels[0].key, THETA_K).params
    begun = networks.level_start(method, network(node), network(before), origin)
    assert begun == tag(node, "start_digest")
    if method in ("imp", "wr", "lrr_bn_rewind"):
        other = {name: tensor + 0.1 for name, tensor in origin.items()}
        assert networks.level_start(method, network(node), network(before), other) != begun
    if method in ("lrr", "random", "lrr_bn_rewind"):
        assert networks.level_start(method, network(node), network(node), origin) != begun
