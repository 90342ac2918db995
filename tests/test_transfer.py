"""Test the start of each kind of final training against docs/methods.md."""

import pytest
import torch

from harness.masks import Mask, SignedMask, transfer


@pytest.fixture
def parts():
    torch.manual_seed(0)
    names = {"w": (20, 20), "v": (30, 10), "b": (20,), "bn.weight": (20,), "bn.bias": (20,)}
    ticket = {name: torch.randn(shape) for name, shape in names.items()}
    theta_init = {name: torch.randn(shape) for name, shape in names.items()}
    theta_init["bn.weight"], theta_init["bn.bias"] = torch.ones(20), torch.zeros(20)
    mask = Mask({"w": torch.rand(20, 20) < 0.3, "v": torch.rand(30, 10) < 0.7})
    mask.apply_(ticket)
    return theta_init, ticket, SignedMask.of(ticket, mask, ["bn.weight", "bn.bias"])


def go(kind, parts, **options):
    theta_init, ticket, signed_mask = parts
    return transfer.start(kind, theta_init, ticket, signed_mask, seed=3, **options)


@pytest.mark.parametrize(
    "kind",
    ["retrain", "signed_mask", "mask", "signed_mask_norm", "signed_mask_norm_const", "random_signs", "random_mask"],
)
def test_pruned_weights_are_positive_zero_and_inputs_are_unchanged(kind, parts):
    copies = [{name: tensor.clone() for name, tensor in part.items()} for part in parts[:2]]
    params, mask = go(kind, parts)
    dead = params["w"][~mask.tensors["w"]]
    assert not dead.any() and not torch.signbit(dead).any()
    assert mask.num_remaining == parts[2].mask.num_remaining
    for part, copy in zip(parts[:2], copies, strict=True):
        assert all(torch.equal(part[name], copy[name]) for name in copy)


def test_retrain_starts_from_the_ticket(parts):
    params, _ = go("retrain", parts)
    assert all(torch.equal(params[name], parts[1][name]) for name in params)


def test_signed_mask_is_abs_theta_init_times_s_with_norm_at_init(parts):
    theta_init, _, signed_mask = parts
    params, _ = go("signed_mask", parts)
    assert torch.equal(params["w"], theta_init["w"].abs() * signed_mask.signs["w"])
    assert torch.equal(params["b"], theta_init["b"].abs() * signed_mask.signs["b"])
    assert torch.equal(params["bn.weight"], torch.ones(20)) and torch.equal(params["bn.bias"], torch.zeros(20))
    assert torch.equal(go("signed_mask", parts, unpruned=False)[0]["b"], theta_init["b"])


def test_mask_transfers_no_sign(parts):
    params, mask = go("mask", parts)
    assert torch.equal(params["w"], parts[0]["w"] * mask.tensors["w"]) and torch.equal(params["b"], parts[0]["b"])


def test_norm_kinds(parts):
    _, ticket, signed_mask = parts
    kept, _ = go("signed_mask_norm", parts)
    assert torch.equal(kept["bn.weight"], ticket["bn.weight"]) and torch.equal(kept["bn.bias"], ticket["bn.bias"])
    const, _ = go("signed_mask_norm_const", parts)
    assert torch.equal(const["bn.weight"], signed_mask.signs["bn.weight"].float())
    assert torch.allclose(const["bn.bias"], 0.1 * signed_mask.signs["bn.bias"])


def test_controls(parts):
    theta_init, _, signed_mask = parts
    signs, mask = go("random_signs", parts)
    assert mask.equal(signed_mask.mask) and torch.equal(signs["w"].abs(), theta_init["w"].abs() * mask.tensors["w"])
    agree = (signs["w"].sign() == signed_mask.signs["w"])[mask.tensors["w"]].float().mean()
    assert 0.3 < agree < 0.7
    params, other = go("random_mask", parts)
    for name, kept in signed_mask.mask.tensors.items():
        assert other.tensors[name].sum() == kept.sum() and not other.tensors[name].equal(kept), "layerwise density"
        assert torch.equal(params[name], theta_init[name] * other.tensors[name]), "no transferred signs"


def test_selection_of_unpruned_parameters_that_get_signs():
    named = ("conv.weight", "conv.bias", "bn.weight", "bn.bias", "token", "head.weight", "head.bias")
    signed_mask = SignedMask.of(
        {name: torch.ones(2) for name in named},
        Mask({"conv.weight": torch.ones(2, dtype=torch.bool)}),
        ["bn.weight", "bn.bias"],
    )
    chosen = {which: transfer.unpruned_names(signed_mask, which, "head") for which in ("both", "classifier", "none")}
    assert chosen["classifier"] == {"head.weight", "head.bias"} and chosen["none"] == set()
    assert transfer.unpruned_names(signed_mask, "biases", "head") == {"conv.bias", "token"}
    assert chosen["both"] == {"conv.bias", "token", "head.weight", "head.bias"}
