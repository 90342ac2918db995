"""Test interpolation: every float tensor, exact ends, and errors for mismatches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.analysis.interpolate import interpolate
from harness.models import build_model


def networks(name: str, image_size: int = 8) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = build_model(name, num_classes=3, channels=1, image_size=image_size, width=8)
        for tensor in model.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape) if tensor.is_floating_point() else torch.tensor(10 + seed))
        states.append(model.state_dict())
    return states[0], states[1]


@pytest.mark.parametrize("name", ["resnet8", "mlp_mixer_small"])
def test_the_ends_are_the_networks_bit_for_bit(name):
    a, b = networks(name)
    at_one, at_zero = interpolate(a, b, 1.0), interpolate(a, b, 0.0)
    assert at_one.keys() == a.keys()
    assert all(torch.equal(at_one[key], a[key]) for key in a)
    assert all(torch.equal(at_zero[key], b[key]) for key in a if a[key].is_floating_point())


@pytest.mark.parametrize("name", ["resnet8", "mlp_mixer_small"])
@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_every_float_tensor_moves_and_integers_are_those_of_a(name, alpha):
    a, b = networks(name)
    between = interpolate(a, b, alpha)
    for key, tensor in between.items():
        if tensor.is_floating_point():
            expected = alpha * a[key].double() + (1 - alpha) * b[key].double()
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)
            assert not torch.equal(tensor, a[key])
        else:
            assert int(tensor) == 11
    kinds = [key for key in between if key.endswith(("running_mean", "norm1.weight", "norm.bias", "proj.weight"))]
    assert kinds  # includes buffers of BatchNorm, LayerNorm and the patch embedding


def test_a_network_with_itself_is_itself_everywhere_and_the_result_is_new():
    a, _ = networks("resnet8")
    for alpha in (0.0, 0.3, 1.0):
        same = interpolate(a, a, alpha)
        assert all(torch.equal(same[key], a[key]) for key in a)
        assert all(same[key].data_ptr() != a[key].data_ptr() for key in a)


def test_conv1d_layernorm_and_embedding_are_interpolated():
    layers = [nn.ModuleDict({"c": nn.Conv1d(2, 2, 3), "n": nn.LayerNorm(4), "e": nn.Embedding(3, 2)}) for _ in range(2)]
    for parameter in layers[1].parameters():
        nn.init.constant_(parameter, 4.0)
    for parameter in layers[0].parameters():
        nn.init.constant_(parameter, 0.0)
    middle = interpolate(layers[0].state_dict(), layers[1].state_dict(), 0.25)
    assert all(torch.equal(tensor, torch.full_like(tensor, 3.0)) for tensor in middle.values())


def test_every_tensor_that_does_not_fit_is_named():
    one, shape = torch.zeros(1), torch.zeros(2, 3)
    a = {"x": one, "mine": one, "shape": shape, "type": one}
    b = {"x": one, "yours": one, "shape": shape.T, "type": one.double()}
    with pytest.raises(ValueError, match="not networks of one shape") as error:
        interpolate(a, b, 0.5)
    assert str(error.value).splitlines()[1:] == [
        "  mine: only in a",
        "  yours: only in b",
        "  shape: a has (2, 3) float32, b has (3, 2) float32",
        "  type: a has (1,) float32, b has (1,) float64",
    ]


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_alpha_outside_the_line_is_refused(alpha):
    with pytest.raises(ValueError, match="α must be between 0 and 1"):
        interpolate({}, {}, alpha)
