"""Test `SignedMask.keep`: which optimizers and networks it takes, and which it refuses."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tests.masks.networks import network, params_of, signed

PRUNED = ~signed().mask["conv.weight"]


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, weight_decay=0.1, momentum=0.9)


def train(model: nn.Module, *optimizers: Any, steps: int = 2) -> bool:
    """Train and return whether every pruned weight stayed 0."""
    for _ in range(steps):
        nn.functional.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.randint(5, (4,))).backward()
        for optimizer in optimizers:
            optimizer.step()
        assert model.get_parameter("conv.weight").count_nonzero() > 0
    return not bool(model.get_parameter("conv.weight")[PRUNED].any())


@pytest.mark.parametrize("make", [sgd, torch.optim.Adam, torch.optim.AdamW], ids=["SGD", "Adam", "AdamW"])
def test_keep_with_a_network_needs_no_apply(make: Callable[..., torch.optim.Optimizer]) -> None:
    """The weights become sparse at once, and keep their values and signs elsewhere."""
    signs, model = signed(), network()
    before, optimizer = params_of(model), make(model.parameters())
    handle = signs.keep(optimizer, model)
    assert torch.equal(model.conv.weight, before["conv.weight"].masked_fill(PRUNED, 0.0))
    assert torch.equal(model.fc.weight, before["fc.weight"])
    assert train(model, optimizer)
    handle.remove()
    assert not train(model, optimizer)


def test_the_binding_is_that_of_the_given_network() -> None:
    """Keep two networks sparse with one signed mask, which was applied to a third one."""
    signs, models = signed(), [network(), network()]
    signs.apply_(network())
    optimizers = [sgd(model.parameters()) for model in models]
    with signs.keep(optimizers[0], models[0]), signs.keep(optimizers[1], models[1]):
        assert all(train(model, optimizer) for model, optimizer in zip(models, optimizers, strict=True))
    assert not train(models[0], optimizers[0])


@pytest.mark.parametrize("order", ["keep, prepare", "prepare, keep", "prepare, keep the plain network"])
def test_keep_takes_what_accelerate_prepares(order: str) -> None:
    signs, model, accelerator = signed(), network(), Accelerator(cpu=True)
    plain, optimizer = model, sgd(model.parameters())
    if order == "keep, prepare":
        signs.keep(optimizer, model)
    model, optimizer = accelerator.prepare(model, optimizer)
    if order != "keep, prepare":
        signs.keep(optimizer, plain if "plain" in order else model)
    assert train(plain, optimizer)


class Outer:
    """A wrapper without hooks, such as those of Accelerate and of learning-rate schedulers."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def step(self) -> None:
        self.optimizer.step()


class Lookahead(torch.optim.Optimizer):
    """A wrapper that is an optimizer, and changes the weights after the step of the inner one."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        super().__init__(optimizer.param_groups, {})

    def step(self) -> None:  # type: ignore[override]
        self.optimizer.step()
        with torch.no_grad():
            for group in self.param_groups:
                for param in group["params"]:
                    param.add_(1.0)


@pytest.mark.parametrize("wrap", [lambda inner: Outer(Outer(inner)), Lookahead], ids=["two wrappers", "Lookahead"])
def test_the_hook_runs_after_the_last_change_of_the_weights(wrap: Callable[[Any], Any]) -> None:
    signs, model = signed(), network()
    optimizer = wrap(sgd(model.parameters()))
    signs.keep(optimizer, model)
    assert train(model, optimizer)


def halves(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Return optimizers of a second masked layer and of all others."""
    first = [param for name, param in model.named_parameters() if name == "fc.weight"]
    return [sgd(first), sgd([param for name, param in model.named_parameters() if name != "fc.weight"])]


@pytest.mark.parametrize("bound", [True, False], ids=["after apply_", "with the network"])
def test_one_of_two_optimizers_is_refused(bound: bool) -> None:
    signs, model = signed(None, "conv.weight", "fc.weight"), network()
    first, second = halves(model)
    given = [] if bound else [model]
    if bound:
        signs.apply_(model)
    for one, lacking in ((first, "conv.weight"), (second, "fc.weight")):
        with pytest.raises(
            ValueError, match=rf"lacks the masked weights {lacking}; .*keep\(\[first, second\], model\)"
        ):
            signs.keep(one, *given)
    handle = signs.keep([first, second], *given)
    train(model, first, second)
    assert all(not model.get_parameter(name)[~kept].any() for name, kept in signs.mask.tensors.items())
    handle.remove()
    train(model, first, second)
    assert all(model.get_parameter(name)[~kept].any() for name, kept in signs.mask.tensors.items())


def test_frozen_weights_need_no_optimizer() -> None:
    signs, model = signed(None, "conv.weight", "fc.weight"), network()
    model.fc.weight.requires_grad_(False)
    _, optimizer = halves(model)
    signs.keep(optimizer, model)
    assert train(model, optimizer) and not model.fc.weight[~signs.mask["fc.weight"]].any()


def other() -> torch.optim.Optimizer:
    return sgd(network().parameters())


REFUSED: dict[str, tuple[Callable[[], tuple[Any, ...]], type[Exception], str]] = {
    "unknown network": (lambda: (other(),), ValueError, "network of this signed mask is unknown; give it"),
    "another network": (lambda: (other(), network()), ValueError, "holds no masked parameter of the given network"),
    "no optimizers": (lambda: ([], network()), ValueError, "holds no masked parameter of the given network"),
    "no optimizer": (lambda: (3, network()), TypeError, "takes an optimizer of torch .*, got <class 'int'>"),
    "swapped": (lambda: (network(), other()), TypeError, "takes an optimizer of torch or one that wraps it"),
    "no network": (lambda: (other(), {}), TypeError, r"mask.keep takes a network .*, got dict$"),
}


@pytest.mark.parametrize(("given", "kind", "complaint"), REFUSED.values(), ids=REFUSED)
def test_misuse_is_an_error_that_says_what_to_do(
    given: Callable[[], tuple[Any, ...]], kind: type[Exception], complaint: str
) -> None:
    with pytest.raises(kind, match=complaint) as caught:
        signed().keep(*given())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("gone", ["all", "one layer"])
def test_a_network_that_is_gone_is_an_error(gone: str) -> None:
    signs, model = signed(None, "conv.weight", "fc.weight"), network()
    signs.apply_(model)
    if gone == "all":
        del model
    else:
        model.fc = nn.Linear(8 * 36, 5)
    gc.collect()
    with pytest.raises(
        ValueError, match=r"network of this signed mask is gone; give it: mask.keep\(optimizer, model\)"
    ):
        signs.keep(sgd(network().parameters()))
