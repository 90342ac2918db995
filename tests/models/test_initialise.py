"""Test the initialisation schemes: distribution and signs of weights, and unchanged parameters."""

import math

import pytest
import torch

from harness.models import classifier_of, partition_of
from harness.models.initialise import SCHEMES
from tests.models.drawing import draw_model

SIZES = {"num_classes": 10, "channels": 3, "image_size": 32}


@pytest.mark.parametrize("name", ["mobilenet_v2_cifar", "vit_tiny"])  # depthwise convolutions, attention
@pytest.mark.parametrize("scheme", ["kaiming_normal", "constant"])
def test_weights_have_he_magnitudes_and_other_parameters_are_unchanged(name, scheme):
    own = draw_model(name, init_seed=3, **SIZES)
    model = draw_model(name, init_seed=3, scheme=scheme, **SIZES)
    weights = partition_of(name, own).prunable | {f"{classifier_of(name)}.weight"}
    before = dict(own.named_parameters())
    for tensor_name, param in model.named_parameters():
        old = before[tensor_name]
        if tensor_name not in weights:
            assert torch.equal(param, old)
            continue
        # He et al. 2015, equation 10: fan_in is the number of weights of one output
        std = math.sqrt(2 / math.prod(param.shape[1:]))
        if scheme == "constant":
            nonzero = old != 0
            assert torch.allclose(param[nonzero].abs(), torch.tensor(std))
            assert torch.equal(param.sign(), old.sign())
        elif param.numel() > 2000:
            assert float(param.detach().std()) == pytest.approx(std, rel=0.1)
            assert float((param.sign() == old.sign()).float().mean()) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_initial_weights_depend_only_on_the_seed(scheme):
    torch.manual_seed(1)
    first = draw_model("resnet8", init_seed=3, scheme=scheme, **SIZES).state_dict()
    after = torch.rand(1)
    second = draw_model("resnet8", init_seed=3, scheme=scheme, **SIZES).state_dict()
    other = draw_model("resnet8", init_seed=4, scheme=scheme, **SIZES).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after), "torch's global generator must not change"


def test_an_unknown_scheme_is_refused():
    with pytest.raises(ValueError, match="unknown initialisation 'xavier'; known: network, kaiming_normal, constant"):
        draw_model("resnet8", init_seed=1, scheme="xavier", **SIZES)
