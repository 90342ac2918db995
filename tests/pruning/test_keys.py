"""Test that keys are stable.

A new option must not change the key of a run that does not use it. Otherwise finished runs would not be reused.
"""

from __future__ import annotations

import json
from copy import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from harness.checkpoint import Checkpoint
from harness.common.machine import cuda_facts
from harness.config import ComparisonConfig, ModelConfig, Schedule
from harness.distributed.world import World
from harness.experiment import describe
from harness.experiment.describe import CommonDescription, comparison_determinants
from harness.experiment.experiment import Experiment, Initialisation
from harness.experiment.final import Trial, final_training
from harness.experiment.search import Search, search
from harness.lineage.nodes.local_files import DETERMINANTS
from harness.lineage.proof.records import _determined
from harness.masks import Mask, SignedMask
from harness.models import MODELS, width_of
from harness.models.network import Definition
from harness.pruning import METHODS
from harness.runs.run import FinishedRun, RunDescription
from recipes.presets.small import digits
from tests.pruning.searching import proved

# Keys computed with commit 0da9014, when aws and lrr were the only methods.
PINNED = {
    "aws": ["aa854c70de8af85d", "66c8aaf9acb55949", "a757f398960d3321", "286e5b715543a997"],
    "lrr": ["000786fd6c4ca2aa", "1db8976301fd6590", "931b3a7426d0283d", "4ff63f7548eaff22"],
}


FOUR = ("resnet50_cifar", "mobilenet_v2_cifar", "shufflenet_cifar", "efficientnet_b0_cifar")
"""Networks whose initialisation changed in commit 66989bd."""


def keys(method: str) -> list[str]:
    """Return the keys of a search and its levels, without training.

    Args:
        method: Pruning method.
    """
    # Phase: replace training by a function that only records the key
    config = replace(digits(), method=method, num_levels=2)
    network = Checkpoint({"conv.weight": torch.rand(10)}, {}, 0, 0, "")
    found, dense = [], Mask.dense(network.params, network.params)

    def untrained(description: RunDescription, make: object) -> FinishedRun:
        found.append(description.key)
        return FinishedRun(description.key, network, SignedMask.of(network.params, dense), None)

    # Phase: search with a minimal stand-in for the experiment
    experiment = SimpleNamespace(
        config=config,
        common=CommonDescription({"format": 2, "data": "0" * 64}, {}, {}, "resnet20"),
        initialisation=Initialisation.of(config.initialisation),
        partition=SimpleNamespace(norm=frozenset(), prunable=frozenset(network.params)),
        classifier="fc",
        spec=SimpleNamespace(channels=1, image_size=8),
        world=SimpleNamespace(size=1),
        train_feed=SimpleNamespace(steps_per_epoch=1),
        archive=SimpleNamespace(run_or_load=untrained),
        theta_init=lambda init_seed, begun: network,
        fresh_model=None,
    )
    finding = Search(experiment, METHODS[method])  # type: ignore[arg-type]
    finding.levels()
    return [finding.root, *found]


@pytest.mark.parametrize("method", list(PINNED))
def test_keys_of_searches_are_unchanged(method: str) -> None:
    assert [key[:16] for key in keys(method)] == PINNED[method]


def test_default_runs_have_no_new_determinants(experiment: Experiment) -> None:
    """Check that default runs have only the determinants of version 1."""
    found = search(experiment.using("lrr"))
    final = final_training(experiment.using("lrr"), Trial("signed_mask", 2, 1), found.ticket)
    every = {"format", "data", "spec", "model", "optim", "precision", "deterministic", "global_batch_size"}
    every |= {"accumulation_steps", "sync_batchnorm", "world_size", "kind"}
    level = every | {"root", "level", "schedule", "pruning_fraction", "parent"}
    training = every | {"used_as", "ticket", "start", "schedule", "init_seed", "sgd_seed"}
    for node, fields in ((found.levels[0], level), (found.ticket, level), (final, training)):
        written = json.loads(experiment.store.local.open_file(node.key, DETERMINANTS).read_bytes())
        assert written.keys() == fields
        assert written["schedule"].keys() == {"epochs", "lr_schedule"}


def test_a_schedule_lists_milestones_only_if_they_are_set() -> None:
    assert Schedule(60, "step").determinants() == {"epochs": 60, "lr_schedule": "step"}
    other = Schedule(60, "step", (20, 40))
    assert other.determinants()["lr_milestones_epochs"] == [20, 40]
    assert [other.lr_factor(epoch) for epoch in (19, 20, 40)] == pytest.approx([1, 0.1, 0.01])


def test_a_record_has_cuda_facts_only_on_cuda(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cuda" not in describe.common(experiment).config["hardware"]
    monkeypatch.setattr(experiment.world, "device", torch.device("cuda"))
    monkeypatch.setattr(World, "device_name", "a GPU")
    facts = describe.common(experiment).config["hardware"]["cuda"]
    assert facts["cudnn"] == torch.backends.cudnn.version() and facts.keys() == cuda_facts().keys()


def test_precision_auto_has_the_key_of_the_resolved_precision(experiment: Experiment) -> None:
    auto = experiment.beside(replace(experiment.config, precision="auto"))
    assert auto.config.precision == "no" and auto.common.determinants == experiment.common.determinants


def test_matmul_precision_is_applied_and_in_the_key(experiment: Experiment) -> None:
    coarse = replace(experiment.config, float32_matmul_precision="medium")
    try:
        found = experiment.beside(coarse).common.determinants
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert found == experiment.common.determinants | {"float32_matmul_precision": "medium"}


@pytest.mark.parametrize(("size", "field"), [(1, {}), (2, {}), (3, {"gradient_buckets": "by first backward"})])
def test_the_order_of_gradient_sums_is_in_the_key_where_it_changes_bits(
    experiment: Experiment, monkeypatch, size, field
) -> None:
    before = experiment.common.determinants
    monkeypatch.setattr(experiment.world, "size", size)
    shared = describe.common(experiment)
    assert shared.determinants == before | {"world_size": size} | field
    launch = shared.config["launch"]
    assert {name: launch[name] for name in launch if name == "gradient_buckets"} == field, "pages tell runs apart by it"


@pytest.mark.parametrize("name", MODELS)
def test_the_initialisation_rule_is_in_the_key_of_networks_where_it_changed(experiment: Experiment, name: str) -> None:
    other = copy(experiment)
    other.config = replace(experiment.config, model=ModelConfig(name))
    other.architecture = Definition.of(other.config.model).sized(10, 1, 8)
    shared, usual = describe.common(other), experiment.common.determinants
    drawn = {"initial_weights": "torch_default"} if name in FOUR else {}
    more = drawn | ({"drop_connect": 0.0} if name == "efficientnet_b0_cifar" else {})
    assert shared.determinants == usual | {"model": {"name": name, "width": width_of(name, None)}} | more
    assert {
        field: shared.config[field] for field in shared.config if field in ("initial_weights", "drop_connect")
    } == more
    assert shared.drawn == drawn


@pytest.mark.parametrize("convention", ["cumulative", "ema", "none"])
def test_a_comparison_has_ema_start_in_its_key_but_no_initialisation_rule(convention) -> None:
    usual = {"format": 2, "data": "0" * 64, "spec": {}, "model": {}, "precision": "no"}
    common = SimpleNamespace(determinants=usual | {"initial_weights": "torch_default"})
    experiment = SimpleNamespace(common=common, source=SimpleNamespace(num_train=10))
    pair, config = (SimpleNamespace(key="a"), SimpleNamespace(key="b")), ComparisonConfig(bn_convention=convention)
    found = comparison_determinants(experiment, *pair, "lmc", config, 64)  # type: ignore[arg-type]
    fields = {"format", "data", "spec", "model", "kind", "question", "pair", "alphas", "bn_convention", "bn_images"}
    assert found.keys() - fields == {"batch"} | ({"ema_start"} if convention == "ema" else set())


def test_a_default_dtype_other_than_float32_is_in_the_key_and_the_record(experiment: Experiment, monkeypatch) -> None:
    """Simulate the float64 of the self-check."""
    before, recorded = experiment.common.determinants, experiment.common.config["launch"]
    assert "dtype" not in before and "dtype" not in recorded
    monkeypatch.setattr(torch, "get_default_dtype", lambda: torch.float64)
    shared = describe.common(experiment)
    assert shared.determinants == before | {"dtype": "float64"}
    assert shared.config["launch"] == recorded | {"dtype": "float64"}


@pytest.mark.parametrize(
    "precision",
    [{}, {"precision": "bf16"}, {"float32_matmul_precision": "high"}, {"dtype": "float64"}, {"compile": "default"}],
)
def test_a_comparison_has_a_nondefault_precision_in_its_key(precision) -> None:
    usual = {"format": 2, "data": "0" * 64, "spec": {}, "model": {}, "precision": "no"}
    common = SimpleNamespace(determinants=usual | precision)
    experiment = SimpleNamespace(common=common, source=SimpleNamespace(num_train=10))
    pair = SimpleNamespace(key="a"), SimpleNamespace(key="b")
    found = comparison_determinants(experiment, *pair, "lmc", ComparisonConfig(), 64)  # type: ignore[arg-type]
    assert {name: found[name] for name in found if "precision" in name or name in ("compile", "dtype")} == precision


def test_a_key_that_contradicts_the_recorded_precision_is_a_problem(experiment: Experiment) -> None:
    ticket = search(experiment.using("lrr")).ticket
    known = json.loads(experiment.store.local.open_file(ticket.key, DETERMINANTS).read_bytes())

    def differ(known: dict) -> list[str]:
        return [name for name, said, recorded in _determined(ticket.record, known) if said != recorded]

    assert differ(known) == [] and differ(known | {"float32_matmul_precision": "high"}) == ["float32_matmul_precision"]
    assert differ(known | {"dtype": "float64"}) == ["dtype"]


@pytest.mark.parametrize("order", [{}, {"gradient_buckets": "by first backward"}])
def test_runs_of_three_processes_verify_with_old_and_new_keys(experiment, monkeypatch, order) -> None:
    usual = describe.common

    def common(experiment: Experiment) -> CommonDescription:
        own, more = usual(experiment), {"world_size": 3} | order
        launch = own.config["launch"] | more
        return replace(own, determinants=own.determinants | more, config=own.config | {"launch": launch})

    monkeypatch.setattr(describe, "common", common)
    ticket = search(experiment.using("lrr", num_levels=1)).ticket
    known = json.loads(experiment.store.local.open_file(ticket.key, DETERMINANTS).read_bytes())
    assert known["world_size"] == 3 and ("gradient_buckets" in known) == bool(order)
    assert proved(experiment, ticket).problems == []
