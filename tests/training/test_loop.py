"""Test the training loop against reference implementations in this file."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from harness.common.seeds import SgdNoise
from harness.config import OptimConfig, Schedule
from harness.training.loop import NonFiniteLossError
from tests.training.small_training import EPOCHS, STEPS, Fixed, OnesNoise, network, run, some_mask


def textbook(model: nn.Module, optim: OptimConfig) -> dict[str, torch.Tensor]:
    """Train in plain PyTorch with θ ⊙ m in the forward pass.

    Return the masked parameters.
    """
    mask = some_mask(model).tensors["0.weight"]
    params = dict(model.named_parameters())
    if optim.name == "sgd":
        optimizer = torch.optim.SGD(params.values(), optim.lr, optim.momentum, weight_decay=optim.weight_decay)
    else:
        optimizer = torch.optim.Adam(params.values(), optim.lr, optim.betas, weight_decay=optim.weight_decay)
    noise, data, schedule = SgdNoise(1, ("search", 0)), Fixed(), Schedule(EPOCHS, "step")
    for epoch in range(EPOCHS):
        optimizer.param_groups[0]["lr"] = optim.lr * schedule.lr_factor(epoch)
        for images, labels in data.epoch(noise, epoch):
            masked = {**params, "0.weight": params["0.weight"] * mask}
            loss = F.cross_entropy(torch.func.functional_call(model, masked, (images,)), labels)
            optimizer.zero_grad()
            loss.backward()
            if optim.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(params.values(), optim.max_grad_norm)
            optimizer.step()
    return {**params, "0.weight": params["0.weight"] * mask}


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("max_grad_norm", [None, 0.1])
def test_equals_the_textbook_masked_forward(world, name, max_grad_norm):
    optim = OptimConfig(name=name, lr=0.05, weight_decay=1e-2, max_grad_norm=max_grad_norm)
    ours = network()
    run(ours, world, optim=optim)
    for param_name, expected in textbook(network(), optim).items():
        found = dict(ours.named_parameters())[param_name]
        assert torch.allclose(found, expected, atol=1e-6), param_name


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
@pytest.mark.parametrize("method", ["aws", "lrr"])
def test_pruned_weights_are_zero_after_every_step(any_world, name, accumulation_steps, method, monkeypatch):
    model = network()
    pruned = ~some_mask(model).tensors["0.weight"]
    zero_after_step = []
    from harness.training.loop import Remask

    remask = Remask.params_

    def watched(self) -> None:
        remask(self)
        zero_after_step.append(not bool(model[0].weight[pruned].any()))

    monkeypatch.setattr(Remask, "params_", watched)
    optim = OptimConfig(name=name, lr=0.05, weight_decay=1e-2)
    run(model, any_world, optim=optim, accumulation_steps=accumulation_steps, method=method)
    assert len(zero_after_step) == 1 + STEPS * EPOCHS and all(zero_after_step)
    assert model[0].weight.any()


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.LayerNorm])
def test_aws_with_alpha_one_is_lrr_bit_for_bit(world, norm):
    lrr, aws = network(norm), network(norm)
    run(lrr, world, method="lrr")
    run(aws, world, method="aws", noise=OnesNoise(1, ("search", 0)))
    assert all(torch.equal(a, b) for a, b in zip(lrr.parameters(), aws.parameters(), strict=True))


def test_aws_with_drawn_alpha_is_not_lrr(world):
    lrr, aws = network(), network()
    run(lrr, world, method="lrr")
    run(aws, world, method="aws")
    assert not all(torch.equal(a, b) for a, b in zip(lrr.parameters(), aws.parameters(), strict=True))


def test_same_noise_same_bits_and_other_noise_other_bits(world):
    first, again, other = network(), network(), network()
    run(first, world, method="aws")
    run(again, world, method="aws")
    run(other, world, method="aws", noise=SgdNoise(2, ("search", 0)))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("method", ["aws", "lrr"])
def test_accumulated_micro_batches_are_the_whole_batch(world, method):
    whole, parts = network(nn.LayerNorm), network(nn.LayerNorm)
    run(whole, world, method=method)
    run(parts, world, method=method, accumulation_steps=4)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_non_finite_loss_names_level_epoch_and_first_bad_step(world):
    batches = Fixed(bad_step=2)
    noise = SgdNoise(1, ("search", 0))
    first = list(noise.permutation(0, STEPS)).index(2)
    with pytest.raises(NonFiniteLossError, match=rf"aws L00: .* epoch 0, step {first} "):
        run(network(), world, batches=batches, noise=noise)


def test_reports_are_exact(world):
    frozen = OptimConfig(lr=1e-12, weight_decay=0.0)
    model = network(nn.LayerNorm)
    report = run(model, world, optim=frozen, schedule=Schedule(1, "constant"))[0]
    data = Fixed()
    with torch.no_grad():
        logits = torch.stack([model(images) for images in data.images])
    loss = F.cross_entropy(logits.flatten(0, 1), data.labels.flatten())
    wrong = (logits.argmax(2) != data.labels).float().mean()
    assert report.train_loss == pytest.approx(float(loss), rel=1e-5)
    assert report.train_error_percent == pytest.approx(100 * float(wrong))
    assert report.lr == frozen.lr


def test_step_schedule_reaches_the_optimizer(world):
    reports = run(network(), world, schedule=Schedule(4, "step"))
    assert [report.lr for report in reports] == pytest.approx([0.05, 0.05, 0.005, 0.0005])
