"""Test SignPruner in loops of other people: kinds of loops, resume, misuse."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn
from torch.func import functional_call

from harness import SignedMask, SignPruner
from harness.common.seeds import SgdNoise
from tests.training import small_training

DENSITIES, SEED = [0.6, 0.3], 3
_generator = torch.Generator().manual_seed(4)
BATCHES = [
    (torch.randn(8, 3, 8, 8, generator=_generator), torch.randint(5, (8,), generator=_generator)) for _ in range(3)
]
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-2)
loss_of = nn.functional.cross_entropy


def network() -> nn.Sequential:
    """Return a network of convolution, LayerNorm and classifier, whose micro-batches add up to the batch."""
    return small_training.network(nn.LayerNorm)


def sign_pruner(model: nn.Module, method: str = "aws", **options) -> SignPruner:
    return SignPruner(model, method, classifier="4", seed=SEED, **options)


def reference(kind: Callable = SGD, clip: float = math.inf, skipped: int | None = None) -> dict[str, torch.Tensor]:
    """Train two pruned levels by AWS, written out with autograd through αψ + (1−α)ψ_init.

    Args:
        kind: Takes the parameters and returns an optimizer.
        clip: Largest norm of the gradient of the kept parameters.
        skipped: Index of a step whose update is skipped.
    """
    model = network()
    params = dict(model.named_parameters())
    psi_init = {name: params[name].detach().clone() for name in ("1.weight", "1.bias")}
    weight, mask = params["0.weight"], torch.ones_like(params["0.weight"])
    for level, density in enumerate([1.0, *DENSITIES]):
        # Keep the largest magnitudes, and begin with a new optimizer.
        with torch.no_grad():
            least = weight.abs().flatten().sort(descending=True).values[round(density * weight.numel()) - 1]
            mask = mask * (weight.abs() >= least)
            weight.mul_(mask)
        optimizer, alphas = kind(model.parameters()), SgdNoise(SEED, ("search", level)).alphas(0, len(BATCHES))
        for index, (images, labels) in enumerate(BATCHES):
            alpha = alphas[index]

            def closure(images=images, labels=labels, alpha=alpha, mask=mask) -> torch.Tensor:
                seen = {n: alpha * p + (1 - alpha) * psi_init[n] if n in psi_init else p for n, p in params.items()}
                loss = loss_of(functional_call(model, seen, (images,)), labels)
                for param, grad in zip(params.values(), torch.autograd.grad(loss, list(params.values())), strict=True):
                    param.grad = grad
                weight.grad *= mask
                if clip < math.inf:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                return loss

            if index != skipped:
                optimizer.step(torch.enable_grad()(closure))
            with torch.no_grad():
                weight.mul_(mask)
    return {name: param.detach().clone() for name, param in params.items()}


# ---- loops: each trains one level of `model`


def usual(pruner: SignPruner, model: nn.Module, kind: Callable = SGD, clip: float = math.inf) -> None:
    optimizer = pruner.attach(kind(model.parameters()))
    for images, labels in BATCHES:
        with pruner.step():
            loss_of(model(images), labels).backward()
        if clip < math.inf:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()


def accumulated(pruner: SignPruner, model: nn.Module, *, each: bool, no_sync: Callable = nullcontext) -> None:
    """Accumulate over two micro-batches, `each` in a block of its own or both in one."""
    optimizer = pruner.attach(SGD(model.parameters()))
    for images, labels in BATCHES:
        with nullcontext() if each else pruner.step():
            for half, end in ((slice(0, 3), False), (slice(3, 8), True)):
                with nullcontext() if end else no_sync(), pruner.step() if each else nullcontext():
                    (loss_of(model(images[half]), labels[half]) * (len(labels[half]) / 8)).backward()
        optimizer.step()
        optimizer.zero_grad()


def zeroed_inside(pruner: SignPruner, model: nn.Module) -> None:
    optimizer = pruner.attach(SGD(model.parameters()))
    for images, labels in BATCHES:
        with pruner.step():
            optimizer.zero_grad(set_to_none=False)
            loss_of(model(images), labels).backward()
        optimizer.step()


def scaled(pruner: SignPruner, model: nn.Module, overflow: int | None = None) -> None:
    """Scale the loss as for fp16. The step `overflow` has an infinite gradient, so that GradScaler skips it."""
    optimizer, scaler = pruner.attach(SGD(model.parameters())), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for index, (images, labels) in enumerate(BATCHES):
        with pruner.step():
            scaler.scale(loss_of(model(images), labels)).backward()
        if index == overflow:
            model[0].weight.grad[0, 0, 0, 0] = math.inf
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


def with_closure(pruner: SignPruner, model: nn.Module, kind: Callable = SGD) -> None:
    optimizer = pruner.attach(kind(model.parameters()))
    for images, labels in BATCHES:

        def closure(images=images, labels=labels) -> torch.Tensor:
            optimizer.zero_grad()
            with pruner.step():
                loss = loss_of(model(images), labels)
                loss.backward()
            return loss

        optimizer.step(closure)


def accelerated(pruner: SignPruner, model: nn.Module, *, first: bool, micro: int = 1) -> None:
    """Prepare the optimizer by Accelerate `first`, or after it was attached."""
    accelerator, optimizer = Accelerator(cpu=True, gradient_accumulation_steps=micro), SGD(model.parameters())
    if first:
        model, optimizer = accelerator.prepare(model, optimizer)
        optimizer = pruner.attach(optimizer)
    else:
        model, optimizer = accelerator.prepare(model, pruner.attach(optimizer))
    for images, labels in BATCHES:
        for part in range(micro):
            with accelerator.accumulate(model):
                with pruner.step():
                    accelerator.backward(loss_of(model(images[part::micro]), labels[part::micro]))
                optimizer.step()
                optimizer.zero_grad()


def begun_and_ended(pruner: SignPruner, model: nn.Module) -> None:
    optimizer = pruner.attach(SGD(model.parameters()))
    for images, labels in BATCHES:
        pruner.begin_step()
        loss_of(model(images), labels).backward()
        pruner.end_step()
        optimizer.step()
        optimizer.zero_grad()


def ended_in_a_closure(pruner: SignPruner, model: nn.Module) -> None:
    """Begin each step before optimizer.step and end it in the closure, as Lightning does."""
    optimizer = pruner.attach(SGD(model.parameters()))
    for images, labels in BATCHES:

        def closure(images=images, labels=labels) -> torch.Tensor:
            loss = loss_of(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            pruner.end_step()
            return loss

        pruner.begin_step()
        optimizer.step(closure=closure)


def two_optimizers(pruner: SignPruner, model: nn.Module) -> None:
    optimizers = pruner.attach(SGD(model[:2].parameters()), SGD(model[2:].parameters()))
    for images, labels in BATCHES:
        with pruner.step():
            loss_of(model(images), labels).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def compiled(pruner: SignPruner, model: nn.Module) -> None:
    usual(pruner, torch.compile(model, backend="eager"))


def distributed(pruner: SignPruner, model: nn.Module, *, micro: bool) -> None:
    wrapped = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    if micro:
        accumulated(pruner, wrapped, each=True, no_sync=wrapped.no_sync)
    else:
        usual(pruner, wrapped)


@contextmanager
def one_process() -> Iterator[None]:
    """Open a process group of one process for DDP."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


ADAM = partial(torch.optim.Adam, lr=0.01, weight_decay=1e-2)
ADAMW = partial(torch.optim.AdamW, lr=0.01, weight_decay=1e-1)
LBFGS = partial(torch.optim.LBFGS, lr=0.05, max_iter=3)
LOOPS: dict[str, tuple[Callable, dict]] = {
    "SGD": (usual, {}),
    "Adam": (partial(usual, kind=ADAM), {"kind": ADAM}),
    "AdamW": (partial(usual, kind=ADAMW), {"kind": ADAMW}),
    "clipping": (partial(usual, clip=0.3), {"clip": 0.3}),
    "accumulation, one block": (partial(accumulated, each=False), {}),
    "accumulation, a block each": (partial(accumulated, each=True), {}),
    "zero_grad inside": (zeroed_inside, {}),
    "GradScaler": (scaled, {}),
    "GradScaler, a skipped step": (partial(scaled, overflow=1), {"skipped": 1}),
    "closure": (with_closure, {}),
    "LBFGS": (partial(with_closure, kind=LBFGS), {"kind": LBFGS}),
    "Accelerate, then attach": (partial(accelerated, first=True), {}),
    "attach, then Accelerate": (partial(accelerated, first=False), {}),
    "Accelerate accumulates": (partial(accelerated, first=True, micro=2), {}),
    "begin_step and end_step": (begun_and_ended, {}),
    "end_step in a closure": (ended_in_a_closure, {}),
    "two optimizers": (two_optimizers, {}),
    "torch.compile": (compiled, {}),
    "DDP": (partial(distributed, micro=False), {}),
    "DDP accumulates": (partial(distributed, micro=True), {}),
}


@pytest.mark.parametrize("name", LOOPS)
def test_every_loop_computes_the_written_out_aws(name: str) -> None:
    train, expected = LOOPS[name]
    model = network()
    pruner = sign_pruner(model)
    small_training.forget_accelerate()
    with one_process() if name.startswith("DDP") else nullcontext():
        for level in pruner.levels(DENSITIES):
            train(pruner, model)
            assert not model[0].weight[~level.mask.tensors["0.weight"]].any()
    small_training.forget_accelerate()
    assert pruner.mask.density == pytest.approx(0.3, abs=0.01)
    # Sums over micro-batches, and LBFGS, round differently.
    for param, (key, value) in zip(model.parameters(), reference(**expected).items(), strict=True):
        torch.testing.assert_close(
            param.detach(), value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key} {text}"
        )


@pytest.mark.parametrize("wrap", ["compile", "DataParallel", "inside"])
def test_wrapped_networks_are_taken_by_plain_names(wrap: str) -> None:
    model = network()
    if wrap == "inside":
        wrapped: nn.Module = nn.Sequential(nn.DataParallel(model[0]), *model[1:])
    else:
        wrapped = nn.DataParallel(model) if wrap == "DataParallel" else torch.compile(model, backend="eager")
    pruner = sign_pruner(wrapped)
    for _ in pruner.levels([0.5]):
        usual(pruner, wrapped)
    assert pruner.signed_mask().signs.keys() == dict(network().named_parameters()).keys()
    assert set(pruner.mask.tensors) == {"0.weight"}


def test_a_network_may_change_its_dtype_within_a_level() -> None:
    model = network()
    pruner = sign_pruner(model)
    for level in pruner.levels([0.5]):
        optimizer = pruner.attach(SGD(model.parameters()))
        for kind in (torch.float64, torch.float32):
            model.to(kind)
            optimizer.state.clear()
            with pruner.step():
                loss_of(model(BATCHES[0][0].to(kind)), BATCHES[0][1]).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert not model[0].weight[~level.mask.tensors["0.weight"]].any()


# ---- resume


def resumable(folder, stop: int | None = None, *, resume: bool = False, method: str = "aws") -> nn.Module:
    """Train, and save everything after `stop` steps in total; or resume from there."""
    model, total = network(), 0
    pruner = sign_pruner(model, method, **({"rewind_steps": 2} if method == "wr" else {}))
    saved = load_file(folder / "optimizer") if resume else {}
    if resume:
        pruner.load_state_dict(load_file(folder / "pruner"))
        model.load_state_dict(load_file(folder / "model"))

    # Phase: train; the first level continues with the saved momentum.
    for level in pruner.levels(DENSITIES, steps_per_epoch=2):
        optimizer = pruner.attach(SGD(model.parameters()))
        for param, momentum in zip(model.parameters(), map(saved.get, map(str, range(6))), strict=True):
            if momentum is not None:
                optimizer.state[param]["momentum_buffer"] = momentum
        saved = {}
        for step in range(level.steps_done, 5):
            images, labels = BATCHES[step % 3]
            with pruner.step():
                loss_of(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            total += 1
            if total == stop:
                save_file(pruner.state_dict(), folder / "pruner")
                save_file(model.state_dict(), folder / "model")
                slots = enumerate(optimizer.state[param]["momentum_buffer"] for param in model.parameters())
                save_file({str(number): slot for number, slot in slots}, folder / "optimizer")
                return model
    return model


@pytest.mark.parametrize(("method", "stop"), [("aws", 1), ("aws", 7), ("aws", 10), ("wr", 4), ("wr", 7), ("aws", 15)])
def test_a_search_that_resumes_within_a_level_has_the_same_bits(tmp_path, method: str, stop: int) -> None:
    whole = resumable(tmp_path, method=method)
    resumable(tmp_path, stop, method=method)
    resumed = resumable(tmp_path, resume=True, method=method)
    for (name, expected), found in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(found, expected), name


def test_a_step_can_be_repeated_within_a_level() -> None:
    model = network()
    pruner = sign_pruner(model)
    for _ in pruner.levels([0.5]):
        state = pruner.state_dict()
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        usual(pruner, model)
        first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(weights)
        pruner.load_state_dict(state)
        pruner._training.detach()  # the second loop has its own optimizer
        usual(pruner, model)
        assert all(torch.equal(tensor, first[name]) for name, tensor in model.state_dict().items())


# ---- methods, results


def test_snip_ranks_by_the_given_batches_and_loss() -> None:
    model = network()
    theta = model[0].weight.detach().clone()
    total = sum(loss_of(model(images), labels) * (len(labels) / 24) for images, labels in BATCHES)
    (gradient,) = torch.autograd.grad(total, [model[0].weight])
    rank = (theta * gradient).abs().flatten()
    pruner = sign_pruner(model.eval(), "snip")
    asked = []
    for level in pruner.levels([0.25], batches=lambda: BATCHES, loss=lambda o, t: asked.append(1) or loss_of(o, t)):
        assert (level.number, level.last, level.begin_steps, level.steps_done) == (1, 1, 0, 0)
        kept = level.mask.tensors["0.weight"].flatten().nonzero()[:, 0]
        assert set(rank.topk(54).indices.tolist()) == set(kept.tolist())
        assert torch.equal(model[0].weight, theta * level.mask.tensors["0.weight"])
    assert len(asked) == 3 and not model.training and model[0].weight.grad is None


def test_seeds_of_the_data_order_follow_the_method() -> None:
    seeds = {name: [level.seed for level in sign_pruner(network(), name).levels([0.5])] for name in ("lrr", "imp")}
    assert len(set(seeds["lrr"])) == 2 and len(set(seeds["imp"])) == 1


def test_alpha_begins_a_new_stream_each_epoch_or_never_ends() -> None:
    for per_epoch, wanted in ((2, [0, 1, 0, 1, 0]), (None, [0, 1, 2, 3, 4])):
        model, seen = network(), []
        pruner = sign_pruner(model)
        for level in pruner.levels([0.5], steps_per_epoch=per_epoch):
            if level.number:
                break
            optimizer = pruner.attach(SGD(model.parameters()))
            for index, position in enumerate(wanted):
                with pruner.step():
                    seen.append(float(SgdNoise(SEED, ("search", 0)).alphas(index // (per_epoch or 99), 9)[position]))
                    assert pruner._training._alpha() == seen[-1]
                optimizer.step()


def test_the_signed_mask_is_a_file_and_the_text_has_three_lines(tmp_path) -> None:
    model = network()
    pruner = sign_pruner(model)
    assert repr(pruner).splitlines()[0] == "SignPruner: method aws, seed 3, not started"
    for level in pruner.levels(DENSITIES):
        usual(pruner, model)
        assert str(level).startswith(f"level {level.number} of 2, density") and f"{level}"[:10] in repr(pruner)
    assert repr(pruner) == (
        "SignPruner: method aws, seed 3, finished\n"
        "  prunable: 216 weights of 1 tensors, 65 kept (density 0.301)\n"
        "  not pruned: 2 norm tensors ψ, 3 others, classifier 4"
    )
    pruner.signed_mask().save(tmp_path / "mine.safetensors")
    loaded = SignedMask.load(tmp_path / "mine.safetensors")
    assert loaded.metadata == {"method": "aws", "classifier": "4", "level": 2, "density": 65 / 216}
    assert all(torch.equal(loaded.signs[n], p.sign().to(torch.int8)) for n, p in model.named_parameters())
    assert pruner.theta_init.params.keys() == loaded.signs.keys()


def test_masks_stay_on_the_optimizer_after_the_last_level() -> None:
    model = network()
    pruner = sign_pruner(model)
    for _ in pruner.levels([0.5]):
        optimizer = pruner.attach(SGD(model.parameters()))
    loss_of(model(BATCHES[0][0]), BATCHES[0][1]).backward()
    optimizer.step()
    assert not model[0].weight[~pruner.mask.tensors["0.weight"]].any()


# ---- misuse: each function runs in level 1 with its own arguments, and must raise


def misuse_without_block(pruner, model, optimizer):
    loss_of(model(BATCHES[0][0]), BATCHES[0][1]).backward()
    optimizer.step()


def misuse_step_inside(pruner, model, optimizer):
    with pruner.step():
        optimizer.step()


def misuse_closure_inside(pruner, model, optimizer):
    with pruner.step():
        optimizer.step(lambda: loss_of(model(BATCHES[0][0]), BATCHES[0][1]).backward())


def misuse_step_before_the_end(pruner, model, optimizer):
    pruner.begin_step()
    optimizer.step()


def misuse_closure_without_the_end(pruner, model, optimizer):
    pruner.begin_step()
    optimizer.step(lambda: loss_of(model(BATCHES[0][0]), BATCHES[0][1]).backward())


def misuse_end_alone(pruner, model, optimizer):
    pruner.end_step()


def misuse_begin_twice(pruner, model, optimizer):
    pruner.begin_step()
    pruner.begin_step()


def misuse_nested(pruner, model, optimizer):
    with pruner.step(), pruner.step():
        pass


def misuse_mask_inside(pruner, model, optimizer):
    with pruner.step():
        pruner.signed_mask()


def misuse_state_inside(pruner, model, optimizer):
    with pruner.step():
        pruner.state_dict()


def misuse_second_optimizer(pruner, model, optimizer):
    classifier = SGD(model[4].parameters())
    optimizer.param_groups[0]["params"] = list(model[:2].parameters())
    pruner._training.detach()
    pruner.attach(optimizer)
    for _ in range(2):
        with pruner.step():
            loss_of(model(BATCHES[0][0]), BATCHES[0][1]).backward()
        classifier.step()
        optimizer.step()


def misuse_loaded_weights(pruner, model, optimizer):
    with pruner.step():
        loss_of(model(BATCHES[0][0]), BATCHES[0][1]).backward()
    optimizer.step()
    model.load_state_dict(network().state_dict())
    with pruner.step():
        pass


def misuse_loaded_weights_at_first(pruner, model, optimizer):
    model.load_state_dict(network().state_dict())
    with pruner.step():
        pass


def misuse_new_network(pruner, model, optimizer):
    pruner.attach(SGD(network().parameters()))


def misuse_part(pruner, model, optimizer):
    pruner._training.detach()
    pruner.attach(SGD(model[4].parameters()))


def misuse_two_calls(pruner, model, optimizer):
    pruner.attach(SGD(model.parameters()))


def misuse_no_optimizer(pruner, model, optimizer):
    pruner._training.detach()
    with pruner.step():
        pass


def misuse_attached_scheduler(pruner, model, optimizer):
    pruner.attach(torch.optim.lr_scheduler.StepLR(optimizer, 1).last_epoch)


def misuse_replaced_layer(pruner, model, optimizer):
    model[4] = nn.Linear(8 * 36, 7)
    pruner.attach(SGD(model.parameters()))


def misuse_levels_again(pruner, model, optimizer):
    pruner.levels([0.2])


def misuse_state_of_another_level(pruner, model, optimizer):
    pruner.load_state_dict(pruner.at_level_0)


MISUSE = {
    misuse_without_block: r"optimizer\.step\(\) without pruner\.step\(\).*with pruner\.step\(\):",
    misuse_step_inside: "inside pruner.step.*put the block into the closure",
    misuse_closure_inside: "inside pruner.step.*put the block into the closure",
    misuse_step_before_the_end: "inside pruner.step.*call it after the block",
    misuse_closure_without_the_end: "before pruner.end_step.*call it after the backward pass",
    misuse_end_alone: r"end_step\(\) without pruner\.begin_step\(\)",
    misuse_begin_twice: "inside another pruner.step",
    misuse_nested: "inside another pruner.step",
    misuse_mask_inside: "signed_mask.* inside pruner.step.*end the block first",
    misuse_state_inside: "state_dict.* inside pruner.step",
    misuse_second_optimizer: r"4\.weight, 4\.bias changed.*pruner\.attach\(first, second\)",
    misuse_loaded_weights: r"pruned weights of 0\.weight are not 0.*pruner\.sync\(\)",
    misuse_loaded_weights_at_first: r"pruned weights of 0\.weight are not 0.*pruner\.load_state_dict",
    misuse_new_network: "no parameter of the network.*a SignPruner for the new network",
    misuse_part: r"lacks the prunable weights 0\.weight.*pruner\.attach\(first, second\)",
    misuse_two_calls: "has an optimizer already",
    misuse_no_optimizer: r"optimizer = pruner\.attach\(optimizer\)",
    misuse_attached_scheduler: "takes an optimizer of torch",
    misuse_replaced_layer: r"4\.bias, 4\.weight of the network were replaced",
    misuse_levels_again: "levels.. was called before",
    misuse_state_of_another_level: "state is of level 0, and this loop is in level 1",
}


@pytest.mark.parametrize("action", MISUSE)
def test_misuse_says_what_to_do(action: Callable) -> None:
    model = network()
    pruner = sign_pruner(model)
    with pytest.raises((RuntimeError, ValueError, TypeError), match=MISUSE[action]) as caught:
        for level in pruner.levels([0.5]):
            if level.number == 0:
                usual(pruner, model)
                pruner.at_level_0 = pruner.state_dict()
            else:
                optimizer = SGD(model.parameters())
                if action not in (misuse_new_network, misuse_replaced_layer, misuse_attached_scheduler):
                    pruner.attach(optimizer)
                action(pruner, model, optimizer)
    assert "\n" not in str(caught.value)


def test_sync_accepts_weights_from_outside() -> None:
    model = network()
    pruner = sign_pruner(model)
    for _ in pruner.levels([0.5]):
        pruner.attach(SGD(model.parameters()))
        model.load_state_dict(network().state_dict())
        pruner.sync()
        with pruner.step():
            pass


def test_calls_outside_a_level_say_so() -> None:
    model = network()
    pruner = sign_pruner(model)
    with pytest.raises(RuntimeError, match=r"step\(\) outside a level: the loop has not begun"):
        pruner.step()
    for _ in pruner.levels([0.5]):
        optimizer = pruner.attach(SGD(model.parameters()))
        with pruner.step():
            loss_of(model(BATCHES[0][0]), BATCHES[0][1]).backward()
        optimizer.step()
        break
    with pytest.raises(RuntimeError, match="left in level 0; create a new SignPruner and load pruner.state_dict"):
        pruner.attach(optimizer)
    with pytest.raises(RuntimeError, match="its loop was left in level 0; create a new SignPruner"):
        pruner.levels([0.5])
    # The state of a loop that was left continues.
    again = sign_pruner(network())
    again.load_state_dict(pruner.state_dict())
    assert [level.steps_done for level in again.levels([0.5])][0] == 1
    with pytest.raises(RuntimeError, match="all levels are trained"):
        again.sync()


def test_an_optimizer_serves_one_level() -> None:
    model = network()
    pruner, optimizer = sign_pruner(model), SGD(model.parameters())
    with pytest.raises(ValueError, match="create a new optimizer for each level"):
        for _ in pruner.levels([0.5]):
            usual(pruner, model, kind=lambda _: optimizer)


def test_a_level_that_ends_before_step_k_is_refused() -> None:
    model = network()
    pruner = sign_pruner(model, "wr", rewind_steps=4)
    with pytest.raises(ValueError, match="level 0 ended after 3 steps, before step 4"):
        for _ in pruner.levels([0.5]):
            usual(pruner, model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "gem_miner"}, "gem_miner trains scores of its own.*recipes"),
        ({"method": "awz"}, "did you mean 'aws'"),
        ({"classifier": "fc"}, "no classifier 'fc' in Sequential"),
        ({"method": "lrr", "alpha": "zero"}, "method lrr uses no α"),
        ({"alpha": "normal"}, "unknown alpha 'normal'"),
        ({"method": "wr"}, "give rewind_steps=k"),
        ({"rewind_steps": 5}, "method aws does not rewind to a step"),
        ({"method": "synflow", "pruning_scope": "layer"}, "remove pruning_scope"),
    ],
)
def test_wrong_arguments_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SignPruner(network(), **{"classifier": "4"} | options)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("aws", {"densities": [0.5, 0.6]}, r"densities is \[0\.5, 0\.6\]; they must fall"),
        ("aws", {"densities": []}, "they must fall"),
        ("aws", {}, "give either densities"),
        ("aws", {"densities": [0.5, 0.001]}, "level 2 keeps none of the 216 prunable weights"),
        ("aws", {"num_levels": 40}, "keeps none"),
        ("aws", {"num_levels": 2, "steps_per_epoch": 0}, "steps_per_epoch is 0"),
        ("dense", {"densities": [0.5]}, "dense prunes nothing"),
        ("snip", {"densities": [0.5]}, r"method snip ranks weights by training images.*batches=\[\(images, labels\)\]"),
        ("synflow", {"densities": [0.5]}, "method synflow ranks"),
        ("snip", {"densities": [0.5], "batches": []}, "batches holds no batch"),
    ],
)
def test_wrong_levels_are_refused(method: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(sign_pruner(network(), method).levels(**options))


def test_states_of_other_searches_are_refused() -> None:
    state = sign_pruner(network()).state_dict()
    with pytest.raises(ValueError, match="method is 'aws' there and 'lrr' here"):
        sign_pruner(network(), "lrr").load_state_dict(state)
    with pytest.raises(ValueError, match="no state of a SignPruner"):
        sign_pruner(network()).load_state_dict(network().state_dict())
    with pytest.raises(ValueError, match="does not fit"):
        wider = nn.Sequential(nn.Conv2d(3, 9, 3), *network()[1:])
        sign_pruner(wider).load_state_dict(state)
    begun = sign_pruner(network())
    next(begun.levels([0.5]))
    other = sign_pruner(network())
    other.load_state_dict(begun.state_dict())
    with pytest.raises(ValueError, match="give the same"):
        other.levels([0.4])
