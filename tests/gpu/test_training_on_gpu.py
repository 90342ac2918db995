"""Test the training loop on CUDA: sparse after every step, repeatable, resumable, and equal to the CPU."""

from __future__ import annotations

import pytest
import torch

from harness.common.seeds import SgdNoise
from harness.config import OptimConfig
from harness.distributed.stop import StoppedError
from harness.models import MODELS
from harness.training.evaluate import evaluate
from harness.training.loop import Remask, TrainStep
from tests.gpu.gpu_steps import Repeated, differing, fresh, sparse_mask, take_steps
from tests.training.small_training import (
    EPOCHS,
    STEPS,
    Memory,
    OnesNoise,
    begin_with_overflows,
    network,
    noisy,
    open_world,
    run,
)

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
@pytest.mark.parametrize("method", ["aws", "lrr"])
def test_pruned_weights_are_zero_after_every_step(world, device, optimizer, accumulation_steps, method, monkeypatch):
    pruned = {name: ~kept for name, kept in sparse_mask("resnet8", fresh("resnet8", 32, device)).tensors.items()}
    remask, steps = Remask.params_, []

    def watched(self: Remask) -> None:
        remask(self)
        left = [param.detach().cpu() * pruned[name] for name, param in zip(pruned, self._params, strict=True)]
        steps.append(all(not bool(weights.any()) for weights in left))
        assert all(bool(param.any()) for param in self._params)

    monkeypatch.setattr(Remask, "params_", watched)
    options = {"method": method, "optimizer": optimizer, "accumulation_steps": accumulation_steps}
    take_steps(world, "resnet8", steps=4, **options)
    assert len(steps) == 1 + 4 and all(steps)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_optimizer_is_fused_where_that_is_safe(world, on_cuda, optimizer, monkeypatch):
    """Check that the optimizer is fused, except SGD under fp16.

    If the first step overflows, fused SGD would later use an uninitialised momentum buffer.
    """
    from harness.training import loop

    built, build = [], loop.build_optimizer
    monkeypatch.setattr(loop, "build_optimizer", lambda *a, **options: built.append(options) or build(*a, **options))
    take_steps(world, "resnet8", method="lrr", optimizer=optimizer, steps=1)
    assert built == [{"fused": not (optimizer == "sgd" and world.precision == "fp16")}]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("method", ["aws", "lrr"])
def test_float32_training_matches_the_cpu(device, optimizer, method, monkeypatch):
    """Compare training in float32 without TF32.

    Then only the order of sums differs between the devices.
    """
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    for world in open_world("no"):
        there = take_steps(world, "resnet8", method=method, optimizer=optimizer)
        world.device = torch.device("cpu")
        here = take_steps(world, "resnet8", method=method, optimizer=optimizer)
    for name, tensor in there.items():
        # Adam's first steps are lr·sign(g), and the sign of a gradient near zero may differ
        tolerance = 1e-4 if optimizer == "sgd" else 0.03
        assert torch.allclose(tensor.float(), here[name].float(), atol=tolerance, rtol=1e-3), name


def test_aws_with_alpha_one_is_lrr_bit_for_bit(world, deterministic):
    ones = OnesNoise(1, ("search", 1))
    aws = take_steps(world, "resnet20", method="aws", noise=ones)
    assert differing(aws, take_steps(world, "resnet20", method="lrr", noise=ones)) == []
    assert differing(aws, take_steps(world, "resnet20", method="aws")) != []


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MODELS))
def test_training_of_every_network_is_bitwise_repeatable(name, world, deterministic):
    """Check bitwise repeatability under deterministic algorithms.

    torch would raise an error at an operation without a deterministic implementation.
    """
    size = 64 if name in ("resnet50", "mlp_mixer", "mlp_mixer_wide") else 32
    options = {"method": "aws", "steps": 2, "batch_size": 4, "image_size": size}
    assert differing(take_steps(world, name, **options), take_steps(world, name, **options)) == []


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("method", ["aws", "lrr"])
def test_a_training_interrupted_after_any_step_ends_with_the_same_bits(world, device, deterministic, optimizer, method):
    """Interrupt and resume a training after each step in turn.

    Under fp16 the first steps overflow, so that the loss scale falls and grows again. It must be restored too.
    """
    if world.precision == "fp16":
        begin_with_overflows(world)

    def start() -> torch.nn.Module:
        return noisy().to(device)

    options = {"optim": OptimConfig(name=optimizer, lr=0.05, max_grad_norm=0.5), "method": method}
    through = start()
    expected = run(through, world, **options)
    scale = world.scaler_state()
    for stop_after in range(1, EPOCHS * STEPS + 1):
        memory = Memory(world, stop_after)
        with pytest.raises(StoppedError):
            run(start(), world, **options, saver=memory)
        world.stop._signal, memory.stop_after = None, None
        run(network().to(device), world)  # changes the loss scale and the random generators before the resume
        again = start()
        reports = run(again, world, **options, saver=memory)
        assert world.scaler_state() == scale
        assert differing(again.state_dict(), through.state_dict()) == []
        assert reports[-1].train_loss == expected[-1].train_loss


def test_fp16_skips_overflowing_steps_and_continues(world, device, monkeypatch):
    if world.precision != "fp16":
        pytest.skip("only fp16 has a loss scale")
    begin_with_overflows(world)
    scales, update = [], TrainStep.update
    monkeypatch.setattr(TrainStep, "update", lambda self: scales.append(world.scaler_state()["scale"]) or update(self))
    model = network().to(device)
    reports = run(model, world, method="aws")
    assert any(b < a for a, b in zip(scales, scales[1:], strict=False))
    assert any(b > a for a, b in zip(scales, scales[1:], strict=False))
    assert all(0 < report.train_loss < 10 for report in reports)
    assert all(bool(param.isfinite().all()) for param in model.parameters())


def test_peak_memory_of_an_aws_step_is_close_to_a_plain_one(device, on_real_device):
    """Compare peak memory with a plain step.

    Masks and the interpolation of ψ may need at most 2 % more. The network is ResNet-50 with 224×224 pixels, batch 256
    and bf16.
    """
    # Phase: define both trainings
    from harness.training.loop import build_optimizer

    batches = Repeated(3, 256, 224, device)

    def peak(work) -> int:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated()

    def plain() -> None:
        model = fresh("resnet50", 224, device)
        optimizer = build_optimizer(model.parameters(), OptimConfig(lr=0.01), fused=True)
        for images, labels in batches.epoch(SgdNoise(1, ("search", 1)), 0):
            with torch.autocast("cuda", torch.bfloat16):
                loss = torch.nn.functional.cross_entropy(model(images).float(), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def ours() -> None:
        for world in open_world("bf16"):
            take_steps(world, "resnet50", method="aws", image_size=224, batches=batches)

    # Phase: compare their peaks
    theirs, mine = peak(plain), peak(ours)
    assert mine <= 1.02 * theirs, f"{mine / 2**20:.0f} MiB against {theirs / 2**20:.0f} MiB"


def test_evaluation_matches_the_cpu(device, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    batches = Repeated(3, 16, 32, device)
    on_cpu = Repeated(3, 16, 32, torch.device("cpu"))
    noise = SgdNoise(1, ("search", 1))
    for world in open_world("no"):
        there = evaluate(fresh("resnet8", 32, device), batches.epoch(noise, 0), world, num_images=48)
        world.device = torch.device("cpu")
        here = evaluate(fresh("resnet8", 32, world.device), on_cpu.epoch(noise, 0), world, num_images=48)
    assert (there.num_correct, there.num_images) == (here.num_correct, here.num_images)
    assert there.loss == pytest.approx(here.loss, rel=1e-4)
