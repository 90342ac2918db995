"""Test masks on networks that DDP, DataParallel and torch.compile wrap, and on networks that cannot be masked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from harness.checkpoint import Checkpoint
from harness.common.tensors import renamed
from harness.masks import Mask, SignedMask
from tests.masks.networks import WRAPPINGS, Inside, Tied, network, params_of, signed

pytestmark = pytest.mark.usefixtures("process_group")


@pytest.mark.parametrize("layer", ["conv", "module"], ids=["usual names", "a layer called module"])
@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
@pytest.mark.long
def test_every_use_takes_a_wrapped_network(wrap: Callable[[nn.Module], nn.Module], layer: str) -> None:
    """Apply, keep, mask, load and convert, and compare with the unwrapped network bit by bit."""
    # Phase: the unwrapped network.
    model, plain = network(name=layer), network(name=layer)
    signs = signed(plain)
    held = Checkpoint.of(plain, level=0, epochs=0, level_digest="")
    signs.apply_(plain)
    wanted = params_of(plain)

    # Phase: apply and keep, with another binding in between.
    wrapped = wrap(model)
    signs.apply_(wrapped)
    assert all(torch.equal(a, b) for a, b in zip(wrapped.parameters(), wanted.values(), strict=True))
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, weight_decay=0.1)
    signed(plain).keep(optimizer, wrapped)
    wrapped(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    pruned = ~signs.mask[f"{layer}.weight"]
    weight = next(param for param in wrapped.parameters() if param.shape == pruned.shape)
    assert not weight[pruned].any() and not torch.equal(weight, wanted[f"{layer}.weight"])

    # Phase: load, mask in place, and convert with plain names.
    held.load_into_(wrapped)
    assert all(torch.equal(a, b) for a, b in zip(wrapped.parameters(), held.params.values(), strict=True))
    dense, split = signs.to_dense(wrapped), signs.to_torch_prune(wrapped)
    signs.mask.apply_(wrapped)
    for name, param in zip(held.params, wrapped.parameters(), strict=True):
        assert torch.equal(dense[name], param)
        assert torch.equal(split[f"{name}_orig" if name in signs.mask else name], param)
    assert dense.keys() == plain.state_dict().keys()


@pytest.mark.parametrize("layer", ["conv", "module"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.module."])
def test_state_dicts_of_wrapped_networks_keep_their_names(prefix: str, layer: str) -> None:
    plain = network(name=layer)
    signs, state = signed(plain), {prefix + name: value for name, value in plain.state_dict().items()}
    wanted = signs.signed(plain.state_dict())
    found = signs.signed(state)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[prefix + name], value) for name, value in wanted.items())
    assert signs.to_dense(state).keys() == plain.state_dict().keys()
    given = {name: value for name, value in state.items() if "running" not in name and "num_" not in name}
    again = SignedMask.of(given, signs.mask)
    assert again.signs.keys() == params_of(plain).keys() and again == SignedMask.of(params_of(plain), signs.mask)
    signs.mask.apply_(state)
    assert not state[f"{prefix}{layer}.weight"][~signs.mask[f"{layer}.weight"]].any()


def test_keys_stay_apart_when_a_prefix_is_removed() -> None:
    """A shorter name that another tensor has already is not taken."""
    names, keys = ["a", "b"], ["module.a", "a", "module.b"]
    assert len(set(renamed(names, keys).values())) == len(keys)
    twice = ["a", "module.a"]
    assert renamed(twice, ["_orig_mod.a", "_orig_mod.module.a"]) == {
        "_orig_mod.a": "a",
        "_orig_mod.module.a": "module.a",
    }


def test_a_mask_of_a_wrapped_network_fits_the_network_itself() -> None:
    model = network()
    outer = signed(Inside(model), "module.conv.weight")
    outer.apply_(model)
    assert not model.conv.weight[~outer.mask["module.conv.weight"]].any()
    assert outer.to_dense(model).keys() == model.state_dict().keys()


@pytest.mark.parametrize("part", ["module", "_orig_mod"])
def test_names_that_differ_only_by_a_wrapper_stay_apart(part: str) -> None:
    # Phase: with the names of the network, and with those of the network in a wrapper.
    model = nn.ModuleDict({"a": nn.Linear(2, 2), part: nn.ModuleDict({"a": nn.Linear(2, 2)})})
    signs = signed(model, "a.weight", f"{part}.a.weight", density=0.5)
    assert signs.to_dense(model).keys() == model.state_dict().keys()
    outer = signed(Inside(model), "module.a.weight", f"module.{part}.a.weight", density=0.5)
    outer.apply_(model)
    for name in outer.mask:
        assert torch.equal(model.get_parameter(name.removeprefix("module.")) == 0, ~outer.mask[name])
    with torch.no_grad():
        for param in model.parameters():
            param.fill_(1.0)

    # Phase: a wrapper around the network.
    for given in (model, nn.DataParallel(model)):
        signs.apply_(given)
        for name in signs.mask:
            assert torch.equal(model.get_parameter(name) == 0, ~signs.mask[name])
        with torch.no_grad():
            for param in model.parameters():
                param.fill_(1.0)


def test_shared_weights_get_one_value_under_all_names() -> None:
    for name in ("first.weight", "second.weight"):
        model = Tied()
        state = model.state_dict()
        signs = SignedMask.of(state, Mask({name: torch.rand(6, 6) < 0.5}))
        signs = replace(signs, signs={n: s for n, s in signs.signs.items() if "weight" not in n or n == name})
        found = signs.signed(state)
        assert len({value.data_ptr() for value in (*found.values(), *state.values())}) == 2 * len(state) - 1
        assert torch.equal(found["first.weight"], found["second.weight"])
        assert torch.equal(found["first.weight"] == 0, ~signs.mask[name])
        dense, split = signs.to_dense(model), signs.to_torch_prune(model)
        assert torch.equal(dense["first.weight"], dense["second.weight"])
        assert len({value.data_ptr() for value in split.values()}) == len(split), "safetensors can save it"
        signs.apply_(model)
        assert torch.equal(model.second.weight, found[name]) and model.first.weight is model.second.weight
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with signs.keep(optimizer, model):
            model(torch.randn(3, 6)).sum().backward()
            optimizer.step()
        assert not model.second.weight[~signs.mask[name]].any()


def test_another_classifier_needs_unpruned_false() -> None:
    signs, model = signed(network(10)), network(100)
    before = params_of(model)
    with pytest.raises(ValueError, match=r"fc.weight is \(100, 288\) in the network.*give unpruned=False") as caught:
        signs.apply_(model)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(param, before[name]) for name, param in model.named_parameters()), "nothing changed"
    signed_bias = before["conv.bias"].abs() * signs.signs["conv.bias"]
    for unpruned in (False, [], {"conv.bias"}, iter(["conv.bias"])):
        model.load_state_dict(before, strict=False)
        signs.apply_(model, unpruned=unpruned)
        assert torch.equal(model.conv.bias, before["conv.bias"] if not unpruned else signed_bias)
        assert torch.equal(model.conv.weight, before["conv.weight"].abs() * signs.signs["conv.weight"])
        assert torch.equal(model.fc.weight, before["fc.weight"])
    without = nn.Sequential()
    without.add_module("conv", model.conv)
    signs.apply_(without, unpruned=False)
    with pytest.raises(ValueError, match="the network has no norm.weight") as caught:
        signs.apply_(without, norm=True, unpruned=False)
    assert "unpruned" not in str(caught.value)


@pytest.mark.parametrize(
    ("unpruned", "kind", "complaint"),
    [
        ("fc.bias", TypeError, "give True, False or a list"),
        (["fc.bais"], ValueError, "unpruned names fc.bais, which the signed mask does not have"),
        ([1], TypeError, r"unpruned is \[1\]; give True"),
        (b"fc.bias", TypeError, "unpruned is b'fc.bias'; give True"),
        (None, TypeError, "unpruned is None; give True, False or a list"),
        (0, TypeError, "unpruned is 0"),
    ],
)
def test_odd_names_of_unpruned_parameters_are_refused(unpruned: object, kind: type[Exception], complaint: str) -> None:
    with pytest.raises(kind, match=complaint):
        signed().apply_(network(), unpruned=unpruned)  # type: ignore[arg-type]


def lazy() -> nn.Module:
    model = network()
    model.conv = nn.LazyConv2d(8, 3)
    return model


def sharded() -> nn.Module:
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    model, mesh = network(), init_device_mesh("cpu", (1,))
    model.conv.weight = nn.Parameter(distribute_tensor(model.conv.weight.data, mesh, [Shard(0)]))
    return model


def pruned() -> nn.Module:
    model = network()
    prune.random_unstructured(model.conv, "weight", 0.5)
    return model


UNUSABLE = {
    "on the meta device": (lambda: network().to("meta"), "conv.weight.* on the meta device, without values; build"),
    "lazy": (lazy, "conv.weight.* no shape yet; pass one batch"),
    "sharded": (sharded, r"conv.weight are sharded over processes \(FSDP\)"),
    "pruned by torch": (pruned, "pruned by torch.nn.utils.prune. Call prune.remove"),
    "wrong shape": (lambda: nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3)}), r"conv.weight is \(4, 3, 3, 3\) in the netw"),
    "other names": (lambda: nn.ModuleDict({"c": nn.Conv2d(3, 8, 3)}), "the network has no conv.weight"),
}


@pytest.mark.parametrize(("make", "complaint"), UNUSABLE.values(), ids=UNUSABLE)
def test_networks_that_cannot_be_masked_are_refused_in_one_line(make: Callable[[], nn.Module], complaint: str) -> None:
    signs = signed()
    optimizer = torch.optim.SGD(network().parameters(), lr=0.1)
    for use in (
        lambda: signs.apply_(make(), unpruned=False),
        lambda: signs.keep(optimizer, make()),
        lambda: signs.mask.apply_(make()),
        lambda: signs.to_dense(make()),
        lambda: signs.to_torch_prune(make()),
        lambda: signs.to_csr(make()),
    ):
        with pytest.raises(ValueError, match=complaint) as caught:
            use()
        assert "\n" not in str(caught.value)


def test_a_checkpoint_is_not_loaded_into_a_network_without_values() -> None:
    held = Checkpoint.of(network(), level=0, epochs=0, level_digest="")
    with pytest.raises(ValueError, match="on the meta device"):
        held.load_into_(network().to("meta"))
    with pytest.raises(ValueError, match="no shape yet"):
        held.load_into_(lazy())


@pytest.mark.parametrize("given", [None, {"conv.weight": torch.zeros(8, 3, 3, 3)}, "model"])
def test_apply_names_what_is_no_network(given: object) -> None:
    kind = type(given).__name__
    with pytest.raises(TypeError, match=rf"mask.apply_ takes a network \(torch.nn.Module\), got {kind}"):
        signed().apply_(given)  # type: ignore[arg-type]


def test_a_network_in_place_of_its_tensors_is_named() -> None:
    for use in (lambda: signed().signed(network()), lambda: SignedMask.of(network(), signed().mask)):
        with pytest.raises(TypeError, match=r"such as dict\(model.named_parameters\(\)\), not Net"):
            use()
