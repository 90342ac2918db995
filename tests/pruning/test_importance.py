"""Test magnitude increase, SNIP and SynFlow against independent references.

Also test the verification of their masks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from harness.checkpoint import Checkpoint
from harness.common.seeds import SgdNoise
from harness.experiment.experiment import Experiment
from harness.experiment.final import Trial, final_training
from harness.experiment.search import SearchResult, search
from harness.lineage.nodes.absent_files import AbsentFile, write_absent_files
from harness.lineage.proof.networks import StoredNetwork, masks
from harness.masks import Mask
from harness.pruning import METHODS, LevelContext
from tests.pruning.searching import proved

Tensors = Mapping[str, torch.Tensor]


def largest(values: Tensors, alive: Tensors, count: int) -> dict[str, torch.Tensor]:
    """Keep the `count` largest live values over all tensors. The values must have no ties.

    Args:
        values: Importance of every weight.
        alive: Boolean masks of the live weights.
        count: Number of weights to keep.

    Returns:
        The new masks.
    """
    flat = torch.cat([values[name][alive[name]] for name in alive])
    threshold = flat.sort(descending=True).values[count - 1]
    return {name: alive[name] & (values[name] >= threshold) for name in alive}


def masks_of(found: SearchResult) -> list[tuple[Mask, Mask]]:
    """Return the masks before and after every pruning, (mₜ₋₁, mₜ)."""
    masks = [run.mask for run in found.levels]
    return list(zip(masks, masks[1:], strict=False))


def assert_equal(mask: Mask, expected: Tensors) -> None:
    differ = {name: int((mask.tensors[name] ^ expected[name]).sum()) for name in expected}
    assert sum(differ.values()) == 0, differ


def test_magnitude_increase_keeps_the_weights_that_grew_most(experiment: Experiment) -> None:
    found = search(experiment.using("magnitude_increase"))
    for run, (before, after) in zip(found.levels, masks_of(found), strict=False):
        grown = {n: run.checkpoint.params[n].abs() - found.theta_init.params[n].abs() for n in before.tensors}
        assert_equal(after, largest(grown, before.tensors, after.num_remaining))
    findings = proved(experiment, found.ticket)
    assert findings.problems == [] and findings.notes == [] and findings.checked["pruned"] == 2


def sensitivities(experiment: Experiment, params: Tensors, mask: Mask, sgd_seed: int) -> dict[str, torch.Tensor]:
    """Compute SNIP's sensitivities |∂L/∂c| at c = m (its equation 3).

    Here c is a factor on every weight. L is the loss of one training batch of the stream "ranking".
    """
    model = experiment.fresh_model().train()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    factors = {name: kept.float().requires_grad_() for name, kept in mask.tensors.items()}
    images_NCHW, labels_N = next(experiment.train_feed.epoch(SgdNoise(sgd_seed, ("ranking",)), 0, num_steps=1))
    used = dict(params) | {name: params[name] * factor for name, factor in factors.items()}
    loss = F.cross_entropy(functional_call(model, used | buffers, (images_NCHW,)), labels_N)
    loss.backward()
    return {name: (factor.grad * mask.tensors[name]).abs() for name, factor in factors.items()}  # type: ignore[operator]


@pytest.mark.parametrize("one_shot", [False, True])
def test_snip_keeps_the_most_sensitive_connections(experiment: Experiment, one_shot: bool) -> None:
    seed = 11 if one_shot else 1
    found = search(experiment.using("snip", one_shot=one_shot, sgd_seed=seed))
    assert found.levels[0].checkpoint.params.keys() == found.theta_init.params.keys()
    assert all(torch.equal(t, found.theta_init.params[n]) for n, t in found.levels[0].checkpoint.params.items())
    for before, after in masks_of(found):
        values = sensitivities(experiment, found.theta_init.params, before, seed)
        expected = largest(values, before.tensors, after.num_remaining)
        differ = sum(int((after.tensors[name] ^ expected[name]).sum()) for name in expected)
        assert differ <= 2, "gradients of factors and of weights may round differently"
    findings = proved(experiment, found.ticket)
    assert findings.problems == [] and findings.checked["pruned"] == len(found.levels) - 1
    final_training(experiment.using("snip"), Trial("signed_mask", 2, 1), found.ticket)


def test_a_snip_mask_without_stored_scores_is_reported_as_unchecked(experiment: Experiment) -> None:
    ticket = search(experiment.using("snip", sgd_seed=3, num_levels=1)).ticket
    directory = experiment.store.local.find(ticket.key)
    assert directory is not None and ticket.record is not None
    path = directory / "importance.safetensors"
    gone = AbsentFile(ticket.record.files[path.name], path.stat().st_size, "2026-01-01T00:00:00+00:00", "by hand")
    write_absent_files(directory, {path.name: gone})
    path.unlink()
    findings = proved(experiment, ticket)
    assert findings.problems == [] and findings.checked["pruned"] == 0
    assert [note.what for note in findings.notes if "not checked" in note.what] == [
        "not checked: importance.safetensors is missing, for pruned"
    ]


def test_a_snip_mask_that_contradicts_its_scores_is_a_problem(experiment: Experiment) -> None:
    found = search(experiment.using("snip", sgd_seed=5, num_levels=1))
    run, parent = found.ticket, found.levels[0]
    scores = experiment.archive.network(run.key, "importance.safetensors")
    own = StoredNetwork(run.checkpoint, run.signed_mask, {"importance.safetensors": scores})
    wrong = {name: tensor.flip(0) for name, tensor in scores.params.items()}
    others = replace(own, further={"importance.safetensors": Checkpoint(wrong, {}, 1, 0, run.key)})
    config = experiment.using("snip", sgd_seed=5, num_levels=1).config
    ctx = LevelContext(config, 1, run.mask, experiment.partition.norm, found.theta_init, parent.checkpoint, {}.get)
    before = StoredNetwork(parent.checkpoint, parent.signed_mask)
    for network, holds in ((own, True), (others, False)):
        (finding,) = [one for one in masks(run.record, ctx, network, before) if one.check == "pruned"]
        assert finding.holds == holds


def test_retrain_of_snip_reuses_the_ticket_but_trains_level_0(experiment: Experiment) -> None:
    found = search(experiment.using("snip"))
    own = final_training(experiment.using("snip"), Trial("retrain", 2, 1), found.ticket)
    assert own.key == found.ticket.key
    dense = final_training(experiment.using("snip"), Trial("retrain", 2, 1), found.levels[0])
    assert dense.key != found.levels[0].key and dense.checkpoint.epochs == experiment.config.final.epochs


def test_synflow_refuses_layerwise_pruning(experiment: Experiment) -> None:
    """Check that the option is refused before any run starts."""
    before = set(experiment.config.runs.iterdir())
    with pytest.raises(ValueError, match="remove pruning_scope"):
        search(experiment.using("synflow", pruning_scope="layer", init_seed=77))
    assert set(experiment.config.runs.iterdir()) == before


def test_importance_is_computed_only_for_new_levels(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    search(experiment.using("synflow", num_levels=1))
    monkeypatch.setattr(METHODS["synflow"], "importance", None)
    assert search(experiment.using("synflow", num_levels=1)).ticket.checkpoint.level == 1


class Tanaka:
    """SynFlow as in its authors' code.

    Parameters are made positive in place, masks multiply the weights, and scores are |g ⊙ θ|.
    """

    def __init__(self, model: nn.Module, theta_init: Tensors) -> None:
        self.model = model.double().eval()
        self.model.load_state_dict({name: tensor.double() for name, tensor in theta_init.items()})
        with torch.no_grad():
            for tensor in self.model.state_dict().values():
                tensor.abs_()

    def mask(self, before: Mask, density: float, shape: tuple[int, ...], rounds: int = 100) -> dict[str, torch.Tensor]:
        """Prune iteratively, with exponentially falling density.

        Args:
            before: Mask before the pruning.
            density: Share of its weights to keep.
            shape: Shape of an image, (channels, height, width).
            rounds: Number of rounds.

        Returns:
            The new masks.
        """
        params, alive = dict(self.model.named_parameters()), dict(before.tensors)
        whole = {name: params[name].detach().clone() for name in alive}
        for number in range(1, rounds + 1):
            # Phase: scores of the masked network for an image of ones
            self.model.zero_grad()
            with torch.no_grad():
                for name, kept in alive.items():
                    params[name].copy_(whole[name] * kept)
            self.model(torch.ones(1, *shape, dtype=torch.float64)).sum().backward()
            scores = {name: (params[name].grad * params[name]).detach().abs() for name in alive}  # type: ignore[operator]
            # Phase: keep the largest scores of the live weights
            count = int(before.num_remaining * density ** (number / rounds))
            alive = largest(scores, alive, count)
        # Phase: restore the unmasked weights for the next call
        with torch.no_grad():
            for name, tensor in whole.items():
                params[name].copy_(tensor)
        return alive


@pytest.mark.parametrize("one_shot", [False, True])
def test_synflow_keeps_the_weights_with_most_flow(experiment: Experiment, one_shot: bool) -> None:
    found = search(experiment.using("synflow", one_shot=one_shot, sgd_seed=11 if one_shot else 1))
    spec, reference = experiment.spec, Tanaka(experiment.fresh_model(), found.theta_init.state_dict)
    for before, after in masks_of(found):
        share = after.num_remaining / before.num_remaining
        expected = reference.mask(before, share, (spec.channels, spec.image_size, spec.image_size))
        differ = sum(int((after.tensors[name] ^ expected[name]).sum()) for name in expected)
        assert differ <= 2, "rounding of the count may differ by one weight"
    findings = proved(experiment, found.ticket)
    assert findings.problems == [] and findings.notes == [] and findings.checked["pruned"] == len(found.levels) - 1


def test_method_and_level_of_synflow_are_recorded(experiment: Experiment) -> None:
    ticket = search(experiment.using("synflow")).ticket
    determinants = json.loads(experiment.store.local.open_file(ticket.key, "determinants.json").read_bytes())
    assert determinants["level"] == 2 and ticket.record is not None and ticket.record.tags["method"] == "synflow"
