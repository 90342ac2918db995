"""Test AWS: the forward pass uses αψ + (1−α)ψ_init, and the gradient of ψ follows the chain rule."""

import pytest
import torch
from torch import nn

from harness.models.partition import ParamPartition
from harness.pruning import METHODS, NormState


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8),
        nn.Flatten(), nn.LayerNorm(8 * 16), nn.Linear(8 * 16, 5),
    )  # fmt: skip


def moved_away(model: nn.Module) -> tuple[list[nn.Parameter], list[torch.Tensor]]:
    norm = sorted(ParamPartition.of(model, "7").norm)
    params = [dict(model.named_parameters())[name] for name in norm]
    initial = [param.detach().clone() for param in params]
    with torch.no_grad():
        for param in params:
            param.add_(torch.randn_like(param))
    return params, initial


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.7, 1.0])
def test_equals_the_written_out_interpolation(alpha):
    model = network()
    norm_params, initial = moved_away(model)
    images, labels = torch.randn(6, 3, 8, 8), torch.randint(5, (6,))
    # reference: autograd differentiates the interpolation itself
    named = dict(model.named_parameters())
    by_id = {id(param): start for param, start in zip(norm_params, initial, strict=True)}
    seen = {n: alpha * p + (1 - alpha) * by_id[id(p)] if id(p) in by_id else p for n, p in named.items()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    logits = torch.func.functional_call(model, seen | buffers, (images,))
    loss = nn.functional.cross_entropy(logits, labels)
    expected = torch.autograd.grad(loss, list(named.values()))

    before = [param.detach().clone() for param in norm_params]
    with METHODS["aws"].view(NormState(norm_params, initial))(alpha):
        found_loss = nn.functional.cross_entropy(model(images), labels)
        found_loss.backward()
    assert torch.allclose(found_loss, loss, atol=1e-6)
    for param, gradient in zip(named.values(), expected, strict=True):
        assert torch.allclose(param.grad, gradient, atol=1e-5)
    assert all(torch.equal(now, then) for now, then in zip(norm_params, before, strict=True))


def test_psi_is_restored_after_an_exception():
    model = network()
    norm_params, initial = moved_away(model)
    before = [param.detach().clone() for param in norm_params]
    with pytest.raises(RuntimeError, match="boom"), METHODS["aws"].view(NormState(norm_params, initial))(0.5):
        raise RuntimeError("boom")
    assert all(torch.equal(now, then) for now, then in zip(norm_params, before, strict=True))


def test_batch_layer_and_group_norm_are_all_psi():
    names = {"1.weight", "1.bias", "4.weight", "4.bias", "6.weight", "6.bias"}
    assert ParamPartition.of(network(), "7").norm == names
