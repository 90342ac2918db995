"""Test fp16 and its loss scale on the CPU.

tests/gpu tests CUDA's kernels.
"""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from harness.common.seeds import SgdNoise
from harness.config import OptimConfig, Schedule
from harness.distributed.stop import StoppedError
from harness.distributed.world import World
from harness.pruning import METHODS, NormState
from harness.training.loop import NonFiniteLossError, TrainStep
from harness.training.resume import capture
from tests.training.small_training import EPOCHS, STEPS, Fixed, Memory, network, noisy, run, some_mask

NOISE = SgdNoise(1, ("search", 0))
PSI = ("1.weight", "1.bias")


def psi_init(model: nn.Module) -> list[torch.Tensor]:
    """Return a ψ_init that differs from the initial ψ.

    Thus α matters from the first step.
    """
    generator = torch.Generator().manual_seed(5)
    params = dict(model.named_parameters())
    return [params[name].detach() + torch.rand(params[name].shape, generator=generator) for name in PSI]


def aws_view(model: nn.Module):
    params = dict(model.named_parameters())
    return METHODS["aws"].view(NormState([params[name] for name in PSI], psi_init(model)))


def textbook(model: nn.Module, optim: OptimConfig) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Train with AWS in fp16, written out in plain PyTorch.

    The loss scale is manual. Autograd differentiates through the interpolation.

    Returns:
        The masked parameters, and the loss scale of every step.
    """
    mask = some_mask(model).tensors["0.weight"]
    params, initial = dict(model.named_parameters()), dict(zip(PSI, psi_init(model), strict=True))
    optimizer = torch.optim.SGD(params.values(), optim.lr, optim.momentum, weight_decay=optim.weight_decay)
    scale, good, scales = 2.0**20, 0, []
    for epoch in range(EPOCHS):
        alphas = NOISE.alphas(epoch, STEPS)
        optimizer.param_groups[0]["lr"] = optim.lr * Schedule(EPOCHS, "step").lr_factor(epoch)
        for (images, labels), alpha in zip(Fixed().epoch(NOISE, epoch), map(float, alphas), strict=True):
            # Phase: scaled loss of the interpolated, masked network
            seen = {name: alpha * params[name] + (1 - alpha) * initial[name] for name in PSI}
            seen |= {"0.weight": params["0.weight"] * mask}
            with torch.autocast("cpu", torch.float16):
                logits = torch.func.functional_call(model, {**params, **seen}, (images,))
            optimizer.zero_grad()
            (F.cross_entropy(logits.float(), labels) * scale).backward()
            scales.append(scale)
            # Phase: skip the step after an overflow, else unscale, clip and step
            if not all(bool(param.grad.isfinite().all()) for param in params.values()):
                scale, good = scale / 2, 0
                continue
            for param in params.values():
                param.grad /= scale
            if optim.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(params.values(), optim.max_grad_norm)
            optimizer.step()
            good += 1
            if good == 2:
                scale, good = scale * 2, 0
    return {**params, "0.weight": params["0.weight"] * mask}, scales


@pytest.mark.parametrize("max_grad_norm", [None, 0.1])
def test_aws_equals_the_textbook_with_the_scale_written_out(fp16_world, max_grad_norm, monkeypatch):
    optim = OptimConfig(name="sgd", lr=0.05, weight_decay=1e-2, max_grad_norm=max_grad_norm)
    update, scales = TrainStep.update, []

    def watched(self) -> None:
        scales.append(fp16_world.scaler_state()["scale"])
        update(self)

    monkeypatch.setattr(TrainStep, "update", watched)
    ours = network()
    run(ours, fp16_world, optim=optim, view=aws_view(ours))
    expected, expected_scales = textbook(network(), optim)
    assert scales == expected_scales
    assert len(set(scales)) > 2 and scales[0] == 2.0**20
    for name, param in ours.named_parameters():
        assert torch.allclose(param, expected[name], atol=1e-5), name


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("method", ["aws", "lrr"])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_an_overflow_skips_the_step_and_nothing_else(fp16_world, name, method, accumulation_steps, monkeypatch):
    model = network()
    pruned = ~some_mask(model).tensors["0.weight"]
    skipped, update = [], TrainStep.update

    def watched(self) -> None:
        scale, before = fp16_world.scaler_state()["scale"], self.state()
        update(self)
        after = self.state()
        skipped.append(fp16_world.scaler_state()["scale"] < scale)
        same = before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in after)
        assert same == skipped[-1]
        assert not model[0].weight[pruned].any()

    def state(self) -> dict[str, torch.Tensor]:
        captured = capture(self.model, self.optimizer)
        return {key: value for key, value in captured.items() if not key.startswith("buffer")}

    monkeypatch.setattr(TrainStep, "state", state, raising=False)
    monkeypatch.setattr(TrainStep, "update", watched)
    optim = OptimConfig(name=name, lr=0.05, weight_decay=1e-2)
    reports = run(model, fp16_world, optim=optim, method=method, accumulation_steps=accumulation_steps)
    # a skipped step is not an error, because its loss is finite
    assert skipped[0] and not all(skipped) and len(skipped) == STEPS * EPOCHS
    assert all(0 < report.train_loss < 10 for report in reports)


def test_a_loss_that_is_not_finite_is_still_an_error(fp16_world):
    with pytest.raises(NonFiniteLossError, match="epoch 0, step"):
        run(network(), fp16_world, batches=Fixed(bad_step=2), noise=NOISE)


@pytest.mark.long
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_resumed_training_has_the_same_scale_and_bits(fp16_world, name):
    options = {"optim": OptimConfig(name=name, lr=0.05, max_grad_norm=0.5), "method": "aws"}
    through = noisy()
    run(through, fp16_world, **options)
    expected_scale = fp16_world.scaler_state()
    for stop_after in (1, 2, STEPS, STEPS + 3):
        memory = Memory(fp16_world, stop_after)
        with pytest.raises(StoppedError):
            run(noisy(), fp16_world, **options, saver=memory)
        assert memory.state is not None and memory.state.scaler == fp16_world.scaler_state()
        # a saved state passes through JSON
        memory.state = replace(memory.state, scaler=json.loads(json.dumps(memory.state.scaler)))
        fp16_world.stop._signal, memory.stop_after = None, None
        run(network(), fp16_world)  # another training in between changes the scale
        again = noisy()
        run(again, fp16_world, **options, saver=memory)
        assert fp16_world.scaler_state() == expected_scale
        for key, value in through.state_dict().items():
            assert torch.equal(again.state_dict()[key], value), (stop_after, key)


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 is supported on a GPU")
def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(ValueError, match="fp16 mixed precision needs a GPU"):
        World("fp16")
