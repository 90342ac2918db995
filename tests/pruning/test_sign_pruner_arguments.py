"""Test what SignPruner takes and refuses: arguments, levels, batches, states, parameters and metrics."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from harness import SignPruner, load_signed_mask
from tests.pruning.test_sign_pruner import BATCHES, DENSITIES, SGD, loss_of, network, sign_pruner, usual
from tests.training import small_training

IMAGES, LABELS = BATCHES[0]


def one_line(call: Callable[[], Any], kind: type[Exception] | tuple[type[Exception], ...], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# ---- arguments


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return network()


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        (dict, TypeError, "takes a network .*got dict"),
        (lambda: nn.Linear, TypeError, "got the class Linear"),
        (lambda: None, TypeError, "got NoneType"),
        (lambda: nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2)), ValueError, "have no shape yet"),
        (on_meta, ValueError, "on the meta device"),
    ],
)
def test_other_things_than_networks_are_refused(model: Callable, kind: type[Exception], message: str) -> None:
    one_line(lambda: SignPruner(model(), classifier="1"), kind, message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classifier": None}, "classifier is None; give the dotted name"),
        ({"classifier": 4}, "classifier is 4; give"),
        ({"classifier": []}, "give the dotted name"),
        ({"classifier": [4]}, "or a list of names"),
        ({"classifier": ["4", "zz"]}, "no classifier 'zz' in Sequential"),
        ({"seed": 1.5}, r"seed is 1\.5; give a whole number"),
        ({"seed": "1"}, "seed is '1'; give a whole number"),
        ({"seed": None}, "seed is None"),
        ({"seed": True}, "seed is True"),
        ({"seed": 2**64}, "must be below"),
        ({"method": None}, "unknown method None"),
        ({"alpha": 0.5}, r"unknown alpha 0\.5"),
        ({"method": "wr", "rewind_steps": "2"}, "rewind_steps is '2'"),
        ({"method": "wr", "rewind_steps": -1}, "rewind_steps is -1; it must be 0 or more"),
    ],
)
def test_arguments_of_other_types_are_refused(options: dict, message: str) -> None:
    one_line(lambda: SignPruner(network(), **{"classifier": "4"} | options), (TypeError, ValueError), message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"densities": 0.5}, r"densities is 0\.5; give a list of numbers"),
        ({"densities": "0.5"}, "give a list of numbers"),
        ({"densities": [None]}, "give a list of numbers"),
        ({"densities": [math.nan]}, "they must fall"),
        ({"densities": [0.5, 0.5]}, "they must fall"),
        ({"densities": torch.tensor([0.5, 0.6])}, "they must fall"),
        ({"densities": [0.5], "pruning_fraction": 0.3}, "pruning_fraction belongs to num_levels"),
        ({"densities": [0.5], "steps_per_epoch": 1.5}, r"steps_per_epoch is 1\.5; give a whole number"),
        ({"num_levels": 2.5}, r"num_levels is 2\.5; give a whole number"),
        ({"num_levels": -1}, "num_levels is -1; it must be 0 or more"),
        ({"num_levels": 2, "pruning_fraction": 1}, r"pruning_fraction is 1\.0; it must be above 0 and below 1"),
        ({"num_levels": 2, "pruning_fraction": "x"}, "pruning_fraction is 'x'; give a number"),
    ],
)
def test_levels_of_other_types_are_refused(options: dict, message: str) -> None:
    one_line(lambda: list(sign_pruner(network()).levels(**options)), (TypeError, ValueError), message)


@pytest.mark.parametrize("densities", [np.array(DENSITIES), torch.tensor(DENSITIES), (d for d in DENSITIES)], ids=type)
def test_numbers_of_other_libraries_are_taken(densities: Any) -> None:
    pruner = SignPruner(network(), classifier="4", seed=np.int64(3))
    levels = pruner.levels(densities, steps_per_epoch=np.int64(2))
    next(levels)
    # The state holds them as JSON, and continues with lists.
    again = SignPruner(network(), classifier=["4"], seed=3)
    again.load_state_dict(pruner.state_dict())
    rounded = np.array(DENSITIES, dtype=np.float32).tolist() if isinstance(densities, torch.Tensor) else DENSITIES
    assert next(again.levels(rounded, steps_per_epoch=2)).last == 2


BAD_BATCHES: dict[str, tuple[Any, str]] = {
    "a tensor": (IMAGES, "batches is Tensor"),
    "one pair": ((IMAGES, LABELS), "batch 0 of batches is no pair"),
    "images alone": ([IMAGES], "batch 0 of batches is no pair"),
    "dictionaries": ([{"x": IMAGES, "y": LABELS}], "is no pair of tensors"),
    "arrays": ([(IMAGES.numpy(), LABELS.numpy())], "is no pair of tensors"),
    "another length": ([BATCHES[0], (IMAGES, LABELS[:2])], "batch 1 of batches has 8 images and labels of another"),
    "one label": ([(IMAGES, torch.tensor(1))], "batch 0 of batches has 8 images and labels of another"),
    "nothing from a function": (lambda: None, "batches is NoneType"),
    "a number": (5, "batches is int"),
}


@pytest.mark.parametrize(("batches", "message"), BAD_BATCHES.values(), ids=BAD_BATCHES)
def test_batches_of_other_forms_are_refused(batches: Any, message: str) -> None:
    one_line(lambda: list(sign_pruner(network(), "snip").levels([0.5], batches=batches)), ValueError, message)


@pytest.mark.parametrize(
    "loss", [lambda o, t: loss_of(o, t, reduction="none"), lambda o, t: torch.ones(()), lambda o, t: 1]
)
def test_a_loss_without_one_gradient_is_refused(loss: Callable) -> None:
    def levels() -> None:
        list(sign_pruner(network(), "snip").levels([0.5], batches=BATCHES, loss=loss))

    one_line(levels, ValueError, "it must return the mean loss of a batch")


# ---- loops


def test_attach_takes_a_list_and_step_can_be_entered_again() -> None:
    model = network()
    pruner = sign_pruner(model)
    for _ in pruner.levels([0.5]):
        optimizers = [SGD(model[:2].parameters()), SGD(model[2:].parameters())]
        assert pruner.attach(optimizers) is optimizers
        step = pruner.step()
        for images, labels in BATCHES:
            with step:
                loss_of(model(images), labels).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        assert pruner._training.done == 2, "the last step is counted by the next one"


def test_an_optimizer_that_is_given_twice_is_attached_once() -> None:
    model = network()
    pruner = sign_pruner(model)
    for _ in pruner.levels([0.5]):
        optimizer, _ = pruner.attach(*[SGD(model.parameters())] * 2)
        with pruner.step():
            loss_of(model(IMAGES), LABELS).backward()
        optimizer.step()


def test_a_level_begins_without_gradients() -> None:
    model = network()
    pruner = sign_pruner(model)
    for _ in pruner.levels([0.5]):
        assert all(param.grad is None for param in model.parameters())
        optimizer = pruner.attach(SGD(model.parameters()))
        with pruner.step():
            loss_of(model(IMAGES), LABELS).backward()
        optimizer.step()


def test_a_level_may_have_any_number_of_steps() -> None:
    pruner = sign_pruner(network())
    next(pruner.levels([0.5]))
    steps = pruner._training
    expected = steps.noise.alphas(0, 5001)
    for steps.done in (0, 1023, 1024, 5000):
        assert steps._alpha() == expected[steps.done]


def test_frozen_norm_parameters_do_not_end_a_step() -> None:
    seen: dict[bool, list[float]] = {}
    for frozen in (False, True):
        model = network()
        model[1].requires_grad_(not frozen)
        pruner, seen[frozen] = sign_pruner(model), []
        for _ in pruner.levels([0.5]):
            optimizer = pruner.attach(SGD([param for param in model.parameters() if param.requires_grad]))
            for images, labels in BATCHES:
                for half in (slice(0, 3), slice(3, 8)):
                    with pruner.step():
                        seen[frozen].append(pruner._training._alpha())
                        loss_of(model(images[half]), labels[half]).backward()
                optimizer.step()
                optimizer.zero_grad()
    assert seen[True] == seen[False] and seen[True][0::2] == seen[True][1::2]


def passes_apart(pruner: SignPruner, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    loss = loss_of(model(IMAGES), LABELS)
    with pruner.step():
        loss.backward()


def backward_outside(pruner: SignPruner, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    with pruner.step():
        grads = torch.autograd.grad(loss_of(model(IMAGES), LABELS), list(model.parameters()))
    for param, grad in zip(model.parameters(), grads, strict=True):
        param.grad = grad
    optimizer.step()


def another_optimizer(pruner: SignPruner, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    other = SGD(model.parameters())
    for _ in range(2):
        with pruner.step():
            loss_of(model(IMAGES), LABELS).backward()
        other.step()
        other.zero_grad()
        pruner.state_dict()  # it counts the step


def only_another_optimizer(pruner: SignPruner, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    loss_of(model(IMAGES), LABELS).backward()
    SGD(model.parameters()).step()


MISUSE: dict[Callable, str] = {
    passes_apart: "graph of another forward pass.*into the same block",
    backward_outside: r"gradients were computed after pruner\.step\(\).*into the same block",
    another_optimizer: r"changed after pruner\.step\(\), but no attached optimizer made a step.*pruner\.sync\(\)",
    only_another_optimizer: r"changed in level 0 without pruner\.step\(\).*pruner\.attach",
    lambda pruner, *_: pruner.attach(): "give at least one",
}


@pytest.mark.parametrize("action", MISUSE)
def test_training_behind_its_back_is_found_in_the_dense_level(action: Callable) -> None:
    def train() -> None:
        model = network()
        pruner = sign_pruner(model)
        for _ in pruner.levels([0.5]):
            optimizer = SGD(model.parameters())
            if action in list(MISUSE)[:3]:
                pruner.attach(optimizer)
            action(pruner, model, optimizer)

    one_line(train, (RuntimeError, TypeError), MISUSE[action])


def test_a_level_may_be_filled_from_a_file_after_sync() -> None:
    model, trained = network(), network().state_dict()
    pruner = sign_pruner(model)
    for _ in pruner.levels([0.5]):
        model.load_state_dict({name: tensor + 0.1 for name, tensor in trained.items()})
        pruner.sync()
    assert not model[0].weight[~pruner.mask["0.weight"]].any()


def test_callbacks_may_skip_a_batch() -> None:
    """Lightning calls no hook after the backward pass if `training_step` returns None."""
    model = network()
    pruner = sign_pruner(model)
    for _ in pruner.levels([0.5]):
        optimizer = pruner.attach(SGD(model.parameters()))
        for index, (images, labels) in enumerate(BATCHES):
            psi = model[1].weight.detach().clone()

            def closure(index: int = index, images: Any = images, labels: Any = labels, kept: Any = optimizer) -> None:
                kept.zero_grad()
                if index != 1:
                    loss_of(model(images), labels).backward()
                    pruner.end_step()

            pruner.begin_step()
            optimizer.step(closure)
            assert torch.equal(model[1].weight, psi) == (index == 1)
        assert pruner._training.done == 2


def test_a_block_without_gradients_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    pruner = sign_pruner(model)
    for level in pruner.levels([0.5]):
        if level.number == 0:
            pruner.attach(SGD(model.parameters()))
            for mode in (False, True, True):
                with torch.set_grad_enabled(mode), pruner.step():
                    model(IMAGES)
    assert [record.message[:40] for record in caplog.records] == ["no gradient was computed in pruner.step("]


# ---- states


def test_accelerate_saves_and_restores_a_search(tmp_path: Path) -> None:
    def search(stop: int | None = None, *, resume: bool = False) -> nn.Module:
        """Train; save after `stop` steps, or resume."""
        small_training.forget_accelerate()
        accelerator, model, total = Accelerator(cpu=True), network(), 0
        pruner = sign_pruner(model)
        accelerator.register_for_checkpointing(pruner)
        wrapped = accelerator.prepare(model)
        if resume:
            accelerator.load_state(str(tmp_path))
        for level in pruner.levels(DENSITIES):
            optimizer = accelerator.prepare(pruner.attach(SGD(model.parameters())))
            if resume and level.steps_done:
                accelerator.load_state(str(tmp_path))  # again, now with the optimizer
            for images, labels in BATCHES[level.steps_done :]:
                with pruner.step():
                    accelerator.backward(loss_of(wrapped(images), labels))
                optimizer.step()
                optimizer.zero_grad()
                total += 1
                if total == stop:
                    accelerator.save_state(str(tmp_path))
                    return model
            accelerator._optimizers.clear()
        return model

    whole = search()
    search(5)
    resumed = search(resume=True)
    small_training.forget_accelerate()
    for (name, expected), found in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(found, expected), name


def with_header(state: Mapping[str, torch.Tensor], **changed: Any) -> dict[str, torch.Tensor]:
    header = json.loads(bytes(state["metadata"].tolist())) | changed
    header = {name: value for name, value in header.items() if value is not None}
    return {**state, "metadata": torch.tensor(list(json.dumps(header).encode()), dtype=torch.uint8)}


DAMAGED: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "empty": lambda state: {},
    "a path": lambda state: "pruner.safetensors",
    "None": lambda state: None,
    "nested": lambda state: {"pruner": state},
    "arrays": lambda state: {name: tensor.numpy() for name, tensor in state.items()},
    "without θ_init": lambda state: {name: tensor for name, tensor in state.items() if "theta_init" not in name},
    "without a mask": lambda state: {name: tensor for name, tensor in state.items() if "mask." not in name},
    "without a parameter": lambda state: {n: t for n, t in state.items() if n != "network.theta_init/param.0.bias"},
    "without plan": lambda state: with_header(state, plan=None),
    "a level as text": lambda state: with_header(state, level="1"),
    "settings as list": lambda state: with_header(state, settings=[1]),
    "a further entry": lambda state: with_header(state, more=1),
    "a later format": lambda state: with_header(state, format="harness.sign_pruner/2"),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_damaged_states_are_refused_in_one_line(damage: Callable) -> None:
    pruner = sign_pruner(network())
    next(pruner.levels([0.5]))
    given = damage(pruner.state_dict())
    one_line(lambda: sign_pruner(network()).load_state_dict(given), ValueError, "state")


def test_a_state_comes_before_levels() -> None:
    pruner = sign_pruner(network())
    state, _ = pruner.state_dict(), pruner.levels([0.5])
    one_line(lambda: pruner.load_state_dict(state), RuntimeError, "load the state first")


# ---- log


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"parameters": {"lr": np.float32(0.1)}}, ValueError, r"parameter 'lr' is np\.float32\(0\.1\).*JSON values"),
        ({"parameters": {"lr": math.nan}}, ValueError, "parameter 'lr' is nan"),
        ({"parameters": {"text": "\ud800"}}, ValueError, r"parameter 'text' is '\\ud800'"),
        ({"parameters": {"w": torch.ones(2, 2)}}, ValueError, "parameter 'w' is tensor"),
        ({"parameters": Namespace(lr=1)}, TypeError, r"vars\(args\)"),
        ({"parameters": "lr=1"}, TypeError, "give a dictionary"),
        ({"metrics": {"a": "8.1"}}, TypeError, r"metric 'a' is '8\.1'; give one number"),
        ({"metrics": {"a": None}}, TypeError, "metric 'a' is None"),
        ({"metrics": {"a": torch.ones(2)}}, TypeError, "give one number"),
        ({"metrics": [1]}, TypeError, "metrics is of type list"),
        ({"metrics": {"a;b": 1}}, ValueError, "name of metric"),
    ],
)
def test_odd_parameters_and_metrics_are_refused(tmp_path: Path, options: dict, kind: type, message: str) -> None:
    pruner = sign_pruner(network())
    list(pruner.levels([0.5]))
    one_line(lambda: pruner.log(**options, runs=tmp_path), kind, message)


def test_other_metrics_of_a_logged_level_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pruner = sign_pruner(network())
    list(pruner.levels([0.5]))
    keys = {pruner.log(metrics={"a": value}, runs=tmp_path) for value in (torch.tensor(1.0), np.float32(1))}
    assert not caplog.records
    keys.add(pruner.log(metrics={"a": 2}, runs=tmp_path))
    keys.add(pruner.log(name="another", metrics={"a": 1}, runs=tmp_path))
    assert len(keys) == 1 and caplog.text.count("exists already, and keeps its name and metrics") == 2


@pytest.mark.parametrize("method", ["aws", "wr"])
def test_a_restored_finished_search_can_be_logged(tmp_path: Path, method: str) -> None:
    options = {"rewind_steps": 2} if method == "wr" else {}
    model = network()
    pruner = sign_pruner(model, method, **options)
    for _ in pruner.levels([0.5]):
        usual(pruner, model)
    again = sign_pruner(model, method, **options)
    again.load_state_dict(pruner.state_dict())
    assert not list(again.levels([0.5]))
    key = again.log(runs=tmp_path / "again")
    assert key == pruner.log(runs=tmp_path / "first")
    # An ID may be given as a message shows it.
    for text in (f"{key[:12]}…", f"{key[:12]}...", f" {key[:12].upper()}\n", f"runs:/{key[:12]}…"):
        assert load_signed_mask(text, local_dir=tmp_path / "again") == again.signed_mask()
    for path in ("nothing.safetensors", "no/such/run"):
        one_line(
            lambda path=path: load_signed_mask(path, local_dir=tmp_path), LookupError, f"no file or directory '{path}"
        )
