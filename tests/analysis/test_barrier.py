"""Test error barriers by definition, by hand and against plain PyTorch."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from harness.analysis.barrier import ALPHAS, BarrierCurve, barrier_curve
from harness.analysis.interpolate import interpolate
from harness.distributed.ranks import OneProcess
from harness.models import build_model
from tests.thread_ranks import ThreadRank, on_ranks


def curve(errors: list[float], **changes: object) -> BarrierCurve:
    values = {
        "alphas": tuple(i / (len(errors) - 1) for i in range(len(errors))),
        "error_percent": tuple(errors),
        "recorded_error_a_percent": errors[-1],
        "recorded_error_b_percent": errors[0],
        "convention": "cumulative",
        "bn_images": 100,
        "test_images": 50,
    }
    return BarrierCurve(**(values | changes))


def test_the_definition_by_hand():
    one = curve([10.0, 16.0, 22.0, 15.0, 20.0])  # α = 0, ¼, ½, ¾, 1
    assert one.barrier == 22.0 - 15.0
    assert one.floor == 5.0
    assert one.barrier_above_line == 22.0 - 15.0  # above the line: 0, 3.5, 7, −2.5, 0
    assert (one.error_a_percent, one.error_b_percent) == (20.0, 10.0)
    assert one.connected(7.0)
    assert not one.connected(6.9)


def test_a_reversed_curve():
    one = curve([10.0, 16.0, 22.0, 15.0, 20.0], recorded_error_a_percent=21.0)
    back = one.reversed()
    assert back.error_percent == (20.0, 15.0, 22.0, 16.0, 10.0) and back.alphas == one.alphas
    assert (back.error_a_percent, back.recorded_error_b_percent) == (one.error_b_percent, 21.0)
    assert (back.barrier, back.floor, back.barrier_above_line) == (one.barrier, one.floor, one.barrier_above_line)
    assert back.reversed() == one
    correct_AN = torch.tensor([[True, False], [True, True]])
    assert torch.equal(curve([50.0, 0.0], correct_AN=correct_AN).reversed().correct_AN, correct_AN.flip(0))


def test_the_sup_includes_the_ends():
    one = curve([4.0, 5.0, 8.0])  # the middle is below the line, so the barrier is its floor
    assert one.barrier == one.floor == 2.0
    assert one.barrier_above_line == 0.0


class Scale(nn.Module):
    """A classifier with one weight w and logits (0, w·x).

    It predicts class 1 if w·x > 0.
    """

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight]))

    def forward(self, x_N1: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(x_N1), x_N1 * self.weight], 1)


def test_two_points_by_hand():
    """Compute the curve between two one-weight networks by hand.

    w = 1 is right on 3 of 4 images, and w = −1 on 1 of 4. At α = ½, w = 0 predicts class 0 for every image.
    """
    images, labels = torch.tensor([[1.0], [2.0], [-1.0], [-3.0]]), torch.tensor([1, 1, 0, 1])
    labels_half = torch.tensor([1, 0, 0, 1])
    a, b = Scale(1.0).state_dict(), Scale(-1.0).state_dict()
    found = barrier_curve(
        Scale(0.0), a, b, bn_batches=[], test_batches=[(images, labels)], alphas=(0.0, 0.25, 0.5, 1.0)
    )
    assert found.error_percent == (75.0, 75.0, 75.0, 25.0)
    assert found.correct_AN.int().tolist() == [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 1, 0], [1, 1, 1, 0]]
    assert found.barrier == 25.0
    found = barrier_curve(
        Scale(0.0), a, b, bn_batches=[], test_batches=[(images, labels_half)], alphas=(0.0, 0.25, 0.5, 1.0)
    )
    assert found.error_percent == (50.0, 50.0, 50.0, 50.0)
    assert found.barrier == 0.0
    assert (found.bn_images, found.test_images) == (0, 4)


def blobs(num: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy 8×8 images of four classes, and their labels.

    Each class has a fixed one-channel pattern.
    """
    patterns = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (num,), generator=generator)
    return patterns[labels] + 2 * torch.randn(num, 1, 8, 8, generator=generator), labels


def trained(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = build_model("resnet8", num_classes=4, channels=1, image_size=8, width=8)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for step in range(25):
        images, labels = blobs(64, 1000 + step)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return trained(1)


@pytest.fixture(scope="module")
def data() -> dict[str, list]:
    images, labels = blobs(200, 7)
    return {
        "bn_batches": list(blobs(128, 8)[0].split(32)),
        "test_batches": list(zip(images.split(64), labels.split(64), strict=True)),
    }


def permuted(model: nn.Module) -> nn.Module:
    """Permute the inner channels of each stage; the function stays the same."""
    model = copy.deepcopy(model)
    for stage in (model.layer1, model.layer2, model.layer3):
        order = torch.randperm(stage[0].conv1.weight.shape[0], generator=torch.Generator().manual_seed(3))
        block = stage[0]
        block.conv1.weight.data = block.conv1.weight.data[order]
        for tensor in (block.bn1.weight, block.bn1.bias, block.bn1.running_mean, block.bn1.running_var):
            tensor.data = tensor.data[order]
        block.conv2.weight.data = block.conv2.weight.data[:, order]
    return model


def test_a_network_has_no_barrier_to_itself(network, data):
    state = network.state_dict()
    found = barrier_curve(copy.deepcopy(network), state, copy.deepcopy(state), **data)
    assert found.barrier == found.floor == found.barrier_above_line == 0.0
    assert found.alphas == ALPHAS
    assert len(set(found.error_percent)) == 1
    assert found.connected(0.0)


def test_the_same_function_with_renamed_channels_lies_behind_a_barrier(network, data):
    other = permuted(network)
    with torch.no_grad():
        images = data["test_batches"][0][0]
        torch.testing.assert_close(other.eval()(images), network.eval()(images), rtol=1e-3, atol=1e-4)
    found = barrier_curve(copy.deepcopy(network), network.state_dict(), other.state_dict(), **data)
    assert found.error_a_percent < 20  # trained: chance is 75
    assert abs(found.error_a_percent - found.error_b_percent) <= 1
    assert found.barrier >= 3  # six images of 200


@pytest.mark.parametrize("convention", ["cumulative", "ema", "none"])
def test_equals_a_plain_pytorch_loop(network, data, convention):
    """Compare with a new network per α that loads the interpolated state.

    Its BatchNorm statistics come from PyTorch's own training mode.
    """
    other = permuted(network)
    a, b = network.state_dict(), other.state_dict()
    found = barrier_curve(copy.deepcopy(network), a, b, alphas=(0.0, 0.4, 1.0), convention=convention, **data)
    for alpha, error in zip(found.alphas, found.error_percent, strict=True):
        plain = copy.deepcopy(network)
        plain.load_state_dict(interpolate(a, b, alpha))
        for norm in (m for m in plain.modules() if isinstance(m, nn.BatchNorm2d) and convention != "none"):
            norm.reset_running_stats()
            norm.momentum = None if convention == "cumulative" else 0.1
        plain.train()
        for images in data["bn_batches"] if convention != "none" else []:
            plain(images)
        plain.eval()
        with torch.no_grad():
            wrong = sum(int((plain(x).argmax(1) != y).sum()) for x, y in data["test_batches"])
        assert math.isclose(error, 100 * wrong / 200, abs_tol=0.51)  # one image: memory formats round differently
    assert found.bn_images == (0 if convention == "none" else 128)


@pytest.mark.parametrize("convention", ["cumulative", "ema", "none"])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_several_ranks_find_what_one_finds(network, data, convention, size):
    """Share the batches among 2, 3 or 5 ranks.

    There are four batches for tests and four for BatchNorm. Three ranks get unequal shares, and one of five gets none.
    """
    a, b = network.state_dict(), permuted(network).state_dict()
    asked = {"alphas": (0.0, 0.4, 1.0), "convention": convention}
    alone = barrier_curve(copy.deepcopy(network), a, b, **asked, **data)

    def work(ranks: ThreadRank) -> BarrierCurve:
        share = {name: batches[ranks.rank :: size] for name, batches in data.items()}
        test = data["test_batches"]
        share["test_batches"] = test[ranks.rank * len(test) // size : (ranks.rank + 1) * len(test) // size]
        return barrier_curve(copy.deepcopy(network), a, b, **asked, **share, ranks=ranks, num_bn_batches=4)

    first, *others = on_ranks(size, work)
    assert all(other == first for other in others)
    assert (first.bn_images, first.test_images) == (alone.bn_images, alone.test_images)
    for name in ("error_percent", "recorded_error_a_percent", "recorded_error_b_percent"):
        assert getattr(first, name) == pytest.approx(getattr(alone, name), abs=0.51)  # one image of 200
    for found in (first, *others):
        wrong = (~found.correct_AN).sum(1)
        assert tuple(100.0 * int(number) / 200 for number in wrong) == found.error_percent
        assert int((found.correct_AN != alone.correct_AN).sum(1).max()) <= 1  # compared in the order of the data set


@pytest.mark.parametrize("what", ["bn_batches", "test_batches"])
def test_data_lost_on_one_rank_ends_all(network, data, what):
    """Let rank 1 run out of images after the first α."""

    def work(ranks: ThreadRank) -> BarrierCurve:
        share = {name: batches[ranks.rank :: 2] for name, batches in data.items()}
        share |= {what: iter(share[what])} if ranks.rank == 1 else {}
        state = network.state_dict()
        asked = {"recorded_error_percent": (1.0, 1.0), "ranks": ranks, "num_bn_batches": 4}
        return barrier_curve(copy.deepcopy(network), state, state, **asked, **share)

    first, second = on_ranks(2, work)
    assert f"{what} gave" in str(second) and "and 0 at the next" in str(second)
    assert str(first) == "rank 1 failed"


def test_ranks_can_agree_before_each_point(network, data):
    """Check that an error in `before_each` ends the curve at that point.

    Points are the two networks with their own statistics, then α = 0, ½, ….
    """
    points = []

    def before_each() -> None:
        points.append(len(points))
        if len(points) == 5:
            raise InterruptedError("asked to stop")

    state, other = network.state_dict(), copy.deepcopy(network)
    with pytest.raises(InterruptedError):
        barrier_curve(other, state, state, alphas=(0, 0.5, 1), before_each=before_each, **data)
    assert points == [0, 1, 2, 3, 4]


class Bf16(OneProcess):
    """One process with autocast to bfloat16."""

    def autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16)


def test_every_point_is_evaluated_in_the_precision_of_the_launch(network, data):
    """Evaluate each point in bfloat16.

    Errors differ from full precision by at most two images.
    """
    other = permuted(network).state_dict()
    full = barrier_curve(copy.deepcopy(network), network.state_dict(), other, **data)
    seen = set()
    scratch = copy.deepcopy(network)
    scratch.fc.register_forward_hook(lambda module, given, logits: seen.add(logits.dtype))
    half = barrier_curve(scratch, network.state_dict(), other, **data, ranks=Bf16())
    assert seen == {torch.bfloat16}
    assert len(set(full.error_percent)) > 4
    assert half.error_percent == pytest.approx(full.error_percent, abs=1.01)  # two images of 200


def test_recorded_errors_use_the_networks_own_statistics(network, data):
    broken = copy.deepcopy(network)
    for norm in (m for m in broken.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.fill_(5.0)  # as after an AWS level, whose running statistics do not belong to ψ
    found = barrier_curve(copy.deepcopy(network), broken.state_dict(), network.state_dict(), alphas=(0, 1), **data)
    assert found.recorded_error_a_percent > 40
    assert found.recorded_error_b_percent < 20
    assert found.error_a_percent == found.error_b_percent < 20  # with re-estimated statistics both networks are equal
    given = barrier_curve(
        copy.deepcopy(network),
        broken.state_dict(),
        network.state_dict(),
        alphas=(0, 1),
        recorded_error_percent=(1.5, 2.5),
        **data,
    )
    assert (given.recorded_error_a_percent, given.recorded_error_b_percent) == (1.5, 2.5)


def test_a_network_without_batchnorm_needs_no_training_images(data):
    torch.manual_seed(0)
    mixer = build_model("mlp_mixer_small", num_classes=4, channels=1, image_size=8, width=16).train()
    found = barrier_curve(
        mixer, copy.deepcopy(mixer.state_dict()), copy.deepcopy(mixer.state_dict()), **(data | {"bn_batches": []})
    )
    assert found.barrier == 0.0
    assert found.bn_images == 0
    assert mixer.training


def test_survives_json_and_refuses_altered_values():
    one = curve([10.0, 16.1, 22.3, 20.0])
    text = json.dumps(one.to_dict())
    assert BarrierCurve.from_dict(json.loads(text)) == one
    assert json.loads(text)["barrier"] == one.barrier
    with pytest.raises(ValueError, match="barrier is recorded as 1.0, but the errors give 7"):
        BarrierCurve.from_dict(one.to_dict() | {"barrier": 1.0})
    with pytest.raises(ValueError, match=r"missing \['alphas'\], unknown \['alpha'\]"):
        BarrierCurve.from_dict({("alpha" if k == "alphas" else k): v for k, v in one.to_dict().items()})


@pytest.mark.parametrize("alphas", [(), (0.0,), (0.1, 1.0), (0.0, 0.9), (0.0, 0.5, 0.5, 1.0), (1.0, 0.0)])
def test_alphas_without_both_ends_are_refused(network, data, alphas):
    with pytest.raises(ValueError, match="α must rise from 0 to 1"):
        barrier_curve(network, network.state_dict(), network.state_dict(), alphas=alphas, **data)


def test_data_that_runs_out_is_refused(network, data):
    state, other = network.state_dict(), copy.deepcopy(network)
    with pytest.raises(ValueError, match="test_batches gave 200 images at one α and 0 at the next"):
        barrier_curve(other, state, state, **(data | {"test_batches": iter(data["test_batches"])}))
    with pytest.raises(ValueError, match="bn_batches gave 128 images at one α and 0 at the next"):
        barrier_curve(other, state, state, **(data | {"bn_batches": iter(data["bn_batches"])}))
    with pytest.raises(ValueError, match="test_batches gave no images"):
        barrier_curve(other, state, state, **(data | {"test_batches": []}))


def test_states_of_another_network_are_named(network, data):
    wide = build_model("resnet8", num_classes=4, channels=1, image_size=8, width=16).state_dict()
    with pytest.raises(
        ValueError, match=r"conv1.weight: state_a has \(16, 1, 3, 3\) float32, the model has \(8, 1, 3, 3\)"
    ):
        barrier_curve(network, wide, wide, **data)
    with pytest.raises(ValueError, match="unknown BatchNorm convention 'mean'; known: cumulative, ema, none"):
        barrier_curve(network, network.state_dict(), network.state_dict(), convention="mean", **data)
