"""Compare the trainings of searches and tickets with stock PyTorch.

The reference uses plain SGD, θ ⊙ m, and an explicit interpolation of ψ. Its data order, augmentation and α come from
the documented random streams.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from harness.common.seeds import SgdNoise, derive_seed
from harness.experiment.experiment import Experiment
from harness.experiment.final import Trial, final_training
from harness.experiment.search import SearchResult, search
from harness.masks import Mask
from harness.runs.run import FinishedRun
from tests.pruning.searching import STEPS, resolved

Tensors = Mapping[str, torch.Tensor]
Scope = tuple[str | int, ...]
TEST_IMAGES = 500
WHOLE = {0: 0.1, 1: 0.01}
"""Learning rate by epoch in a final training of two epochs."""


def plain(
    experiment: Experiment,
    start: tuple[Tensors, Tensors],
    mask: Mask,
    scope: Scope,
    rates: Mapping[int, float],
    psi_init: Tensors | None = None,
) -> nn.Module:
    """Train a network in plain PyTorch with a new SGD optimizer.

    Args:
        experiment: Provides network and data.
        start: Initial parameters and buffers.
        mask: Mask of the training.
        scope: Scope of the random streams of data order, augmentation and α.
        rates: Maps each epoch to its learning rate.
        psi_init: If given, the forward pass uses αψ + (1 − α)ψ_init, which autograd differentiates.

    Returns:
        The trained network.
    """
    # Phase: network and optimizer
    model = experiment.fresh_model().train()
    model.load_state_dict({**start[0], **start[1]})
    params = dict(model.named_parameters())
    optimizer = torch.optim.SGD(params.values(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    # Phase: train through the masked and interpolated parameters
    for epoch, rate in rates.items():
        optimizer.param_groups[0]["lr"] = rate
        alphas = np.random.Generator(np.random.Philox(key=derive_seed(1, *scope, "alpha", epoch)))
        for images_NCHW, labels_N in experiment.train_feed.epoch(SgdNoise(1, scope), epoch):
            alpha = float(alphas.random())
            seen = params | {name: params[name] * kept for name, kept in mask.tensors.items()}
            seen |= {name: alpha * params[name] + (1 - alpha) * first for name, first in (psi_init or {}).items()}
            loss = F.cross_entropy(torch.func.functional_call(model, seen, (images_NCHW,)), labels_N)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def masked(params: Tensors, mask: Mask) -> Tensors:
    return {name: tensor * mask.tensors[name] if name in mask.tensors else tensor for name, tensor in params.items()}


def before(found: SearchResult, level: int) -> tuple[Tensors, Tensors]:
    """Return the start of a level without rewinding: parameters and buffers of the previous level or θ_init."""
    network = found.levels[level - 1].checkpoint if level else found.theta_init
    return masked(network.params, found.levels[level].mask), network.buffers


def alike(node: FinishedRun, reference: nn.Module, start: Tensors) -> None:
    """Assert that a checkpoint equals the reference up to rounding.

    It must also differ from its start. Buffers are compared too. The harness may add floats in another order.
    """
    state = node.checkpoint.state_dict
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=1e-5)
    assert max(float((state[name] - tensor).abs().max()) for name, tensor in start.items()) > 0.03


@pytest.fixture(scope="module")
def lrr(experiment: Experiment) -> SearchResult:
    return search(experiment.using("lrr"))


@pytest.fixture(scope="module")
def aws(experiment: Experiment, lrr: SearchResult) -> SearchResult:
    """Search with AWS from a trained network.

    Its ψ_init then differs from the default 1 and 0.
    """
    return search(experiment.using("aws", initialisation=resolved(experiment, lrr.levels[0].key)))


@pytest.mark.parametrize("level", [0, 1])
def test_a_level_of_lrr_is_new_sgd_from_the_previous_level(experiment: Experiment, lrr: SearchResult, level: int):
    start = before(lrr, level)
    reference = plain(experiment, start, lrr.levels[level].mask, ("search", level), {0: 0.1})
    alike(lrr.levels[level], reference, start[0])


@pytest.mark.parametrize("level", [0, 2])
def test_a_level_of_aws_uses_interpolated_psi(experiment: Experiment, aws: SearchResult, level: int):
    """Check the interpolation with the search's own ψ_init, also in the warm-up."""
    psi_init = {name: aws.theta_init.params[name] for name in experiment.partition.norm}
    assert all(len(tensor.unique()) == len(tensor) for tensor in psi_init.values())
    start = before(aws, level)
    reference = plain(experiment, start, aws.levels[level].mask, ("search", level), {0: 0.1}, psi_init)
    alike(aws.levels[level], reference, start[0])
    without = plain(experiment, start, aws.levels[level].mask, ("search", level), {0: 0.1}).state_dict()
    assert max(float((aws.levels[level].checkpoint.params[n] - without[n]).abs().max()) for n in psi_init) > 1e-3


@pytest.mark.parametrize("method", ["imp", "wr", "lrr_full"])
def test_a_level_of_a_full_method_is_a_complete_training(experiment: Experiment, method: str):
    """Compare the last level with a training of the complete schedule.

    `imp` starts from θ_init. `wr` starts from θ_k and continues at k = 1 epoch. Both use the same noise at all levels.
    `lrr_full` starts from the previous level, with the noise of its own level.
    """
    found = search(experiment.using(method))
    theta_init, mask, scope, rates = found.theta_init, found.ticket.mask, ("search",), WHOLE
    start = masked(theta_init.params, mask), theta_init.buffers
    if method == "wr":
        dense = Mask.dense(theta_init.params, experiment.partition.prunable)
        theta_k = plain(experiment, (theta_init.params, theta_init.buffers), dense, scope, {0: 0.1})
        params = {name: param.detach() for name, param in theta_k.named_parameters()}
        start, rates = (masked(params, mask), dict(theta_k.named_buffers())), {1: 0.01}
    elif method == "lrr_full":
        start, scope = before(found, 2), ("search", 2)
    reference = plain(experiment, start, mask, scope, rates)
    alike(found.ticket, reference, masked(theta_init.params, mask))


@pytest.mark.parametrize("method", ["lrr", "aws"])
def test_a_final_training_is_sgd_without_interpolation_from_fresh_statistics(
    experiment: Experiment, lrr: SearchResult, aws: SearchResult, method: str
):
    """Compare a final training of a ticket with plain SGD.

    The noise depends neither on the method nor on the level of the ticket.
    """
    ticket = aws.ticket if method == "aws" else lrr.levels[1]
    node = final_training(experiment.using(method), Trial("signed_mask", 2, 1), ticket)
    fresh = experiment.theta_init(2)
    signs = ticket.signed_mask.signs
    begun = {
        name: t if name in experiment.partition.norm else t.abs() * signs[name] for name, t in fresh.params.items()
    }
    assert all(not buffer.any() or bool((buffer == 1).all()) for buffer in fresh.buffers.values())
    reference = plain(experiment, (begun, fresh.buffers), ticket.mask, ("final",), WHOLE)
    alike(node, reference, begun)
    assert int(node.checkpoint.buffers["bn1.num_batches_tracked"]) == 2 * STEPS
    assert error_percent(experiment, node) == pytest.approx(node.metric("test_error_percent"), abs=100 / TEST_IMAGES)


def error_percent(experiment: Experiment, node: FinishedRun, prepare: Callable[[nn.Module], None] = lambda model: None):
    """Evaluate a checkpoint in plain PyTorch.

    Args:
        experiment: Provides network and test images.
        node: Run with the checkpoint.
        prepare: Changes the network before the evaluation.

    Returns:
        Test error in percent.
    """
    model = experiment.fresh_model()
    model.load_state_dict(node.checkpoint.state_dict)
    prepare(model)
    model.eval()
    with torch.no_grad():
        wrong = [(model(images).argmax(1) != labels).sum() for images, labels in experiment.test_feed]
    return 100 * int(torch.stack(wrong).sum()) / TEST_IMAGES


@pytest.mark.parametrize("method", ["lrr", "aws"])
def test_a_level_is_evaluated_without_interpolation_of_psi(
    experiment: Experiment, lrr: SearchResult, aws: SearchResult, method: str
):
    """Check both recorded errors of a level.

    One uses BatchNorm statistics that are estimated anew for ψ, the other those gathered during training under α.
    """

    def reestimate(model: nn.Module) -> None:
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over batches
        with torch.no_grad():
            for images_NCHW, _ in experiment.train_feed.epoch(SgdNoise(1, ("batchnorm",)), 0):
                model.train()(images_NCHW)

    for node in (lrr if method == "lrr" else aws).levels:
        one_image = 100 / TEST_IMAGES
        own = error_percent(experiment, node)
        assert own == pytest.approx(node.metric("test_error_percent_recorded_bn"), abs=one_image)
        anew = error_percent(experiment, node, reestimate)
        assert anew == pytest.approx(node.metric("test_error_percent"), abs=one_image)
        assert abs(own - anew) > 2 * one_image, "the two errors must be distinguishable"
