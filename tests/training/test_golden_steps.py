"""Compare single steps of the training loop with the documented rules.

A loop that breaks one of them still trains, resumes and verifies.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from harness.common.seeds import SgdNoise
from harness.config import OptimConfig, Schedule
from harness.distributed.stop import StoppedError
from harness.distributed.world import World
from harness.masks import Mask
from harness.training import loop
from harness.training.loop import NonFiniteLossError, Remask, TrainStep
from tests import golden_reference as reference
from tests.training.small_training import BATCH, EPOCHS, STEPS, Fixed, Memory, network, noisy, run, some_mask

# rank: the seeds of dropout in the first two steps of epochs 0 and 1, with sgd_seed 1 and scope ("search", 0)
DROPOUT = {
    0: [7323452835879738395, 3011474607552727084, 6325686611565238477, 2675290996788138891],
    1: [6789929081192594826, 606448445465269744, 5069510913437109605, 5290141003286168069],
}


@pytest.mark.parametrize("rank", DROPOUT)
def test_dropout_has_a_seed_for_each_rank_and_step(world: World, monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    seeds: list[int] = []
    model = noisy()
    model.register_forward_pre_hook(lambda *_: seeds.append(torch.initial_seed()))
    monkeypatch.setattr(world, "rank", rank)
    run(model, world)
    places = [(epoch, step) for epoch in range(EPOCHS) for step in range(STEPS)]
    assert seeds == [reference.stream_key(1, "search", 0, "dropout", *place, rank) >> 1 for place in places]
    assert [seeds[places.index(place)] for place in ((0, 0), (0, 1), (1, 0), (1, 1))] == DROPOUT[rank]


@pytest.mark.parametrize("parts", [3, 5])
def test_a_micro_batch_weighs_as_much_as_its_images(world: World, parts: int) -> None:
    """Eight images in three or five parts: a mean of the parts' means would be another number."""
    whole, split = network(nn.LayerNorm), network(nn.LayerNorm)
    options = {"optim": OptimConfig(lr=0.5, weight_decay=0.0), "schedule": Schedule(1, "constant")}
    one, other = run(whole, world, **options), run(split, world, accumulation_steps=parts, **options)
    assert other[0].train_loss == pytest.approx(one[0].train_loss, rel=1e-5)
    for a, b in zip(whole.parameters(), split.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    # a wrong weight would be seen
    with torch.no_grad():
        means = [F.cross_entropy(network(nn.LayerNorm)(x), y) for x, y in zip(*_parts(parts), strict=True)]
        every = F.cross_entropy(network(nn.LayerNorm)(Fixed().images[0]), Fixed().labels[0])
    assert abs(float(sum(means)) / parts - float(every)) > 1e-3


def _parts(parts: int) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    return Fixed().images[0].tensor_split(parts), Fixed().labels[0].tensor_split(parts)


@pytest.mark.parametrize(("rank", "images"), [(0, BATCH * STEPS), (1, BATCH * (STEPS - 2))])
def test_the_sums_of_a_resumed_epoch_are_counted_on_one_rank(
    world: World, monkeypatch: pytest.MonkeyPatch, rank: int, images: int
) -> None:
    """The saved sums are those of all ranks: rank 0 adds them to its own, the others begin with 0."""
    memory = Memory(world, stop_after=2)
    with pytest.raises(StoppedError):
        run(network(), world, saver=memory)
    assert memory.state is not None
    world.stop._signal, memory.stop_after = None, None
    saved = memory.state
    # Phase: resume after two steps of epoch 0
    monkeypatch.setattr(world, "rank", rank)
    monkeypatch.setattr(world, "is_main", rank == 0)
    seen: list[list[float]] = []

    def watched(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor.tolist())
        return tensor

    monkeypatch.setattr(world, "sum", watched)
    memory.state = replace(saved, tensors={name: tensor.clone() for name, tensor in saved.tensors.items()})
    reports = run(network(), world, saver=_Loads(memory))
    assert [sums[2] for sums in seen] == [images, BATCH * STEPS], "images of epochs 0 and 1"
    assert len(reports) == EPOCHS


@pytest.mark.parametrize("most_steps", [1, 3, 50])
def test_an_epochs_loss_is_the_float64_sum_of_its_steps_in_order(
    world: World, monkeypatch: pytest.MonkeyPatch, most_steps: int
) -> None:
    """The recorded loss has the same bits for every interval of meetings."""
    steps: list[tuple[torch.Tensor, torch.Tensor]] = []
    backward = TrainStep.backward

    def watched(self: TrainStep, *batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        steps.append(backward(self, *batch))
        return steps[-1]

    monkeypatch.setattr(TrainStep, "backward", watched)
    monkeypatch.setattr(loop, "MEETING_STEPS", most_steps)
    reports = run(network(), world)
    for epoch, report in enumerate(reports):
        total, correct = torch.zeros((), dtype=torch.float64), 0
        for loss, num_correct in steps[epoch * STEPS : (epoch + 1) * STEPS]:
            total += loss * BATCH
            correct += int(num_correct)
        assert report.train_loss == float(total) / (BATCH * STEPS)
        assert report.train_error_percent == 100 * (1 - correct / (BATCH * STEPS))


class _Loads:
    """Loads a state, and saves none."""

    most_steps = None

    def __init__(self, memory: Memory) -> None:
        self.load = memory.load

    def due(self, epoch: int, steps: int) -> bool:
        return False

    def save(self, state: object) -> None:
        raise AssertionError("nothing was due")


def test_a_resumed_training_counts_only_the_steps_that_are_left(world: World) -> None:
    memory, told = Memory(world, stop_after=STEPS + 1), list[int]()
    with pytest.raises(StoppedError):
        run(network(), world, saver=memory)
    world.stop._signal, memory.stop_after = None, None
    run(network(), world, saver=memory, on_steps=told.append)
    assert told[0] == STEPS + 1 and sum(told) == EPOCHS * STEPS
    begun: list[int] = []
    run(network(), world, begin=(1, 2), on_steps=begun.append)
    assert begun == [0, 1, 1], "two steps of epoch 1 are left out"


def test_a_mask_leaves_dense_tensors_alone_and_zeroes_gradients_too() -> None:
    model = network()
    params = dict(model.named_parameters())
    masks = some_mask(model).tensors | {"4.weight": torch.ones_like(params["4.weight"], dtype=torch.bool)}
    remask = Remask(params, Mask(masks))
    for param in params.values():
        param.grad = torch.ones_like(param)
    with pytest.raises(ValueError, match="had another mask"):
        remask.check("L01")
    remask.params_()
    remask.check("L01")
    remask.grads_()
    dead = ~masks["0.weight"]
    assert not params["0.weight"][dead].any() and params["0.weight"][~dead].all()
    assert torch.equal(params["0.weight"].grad, masks["0.weight"].float())
    assert all(bool((param.grad == 1).all()) for name, param in params.items() if name != "0.weight")


def test_each_step_sees_its_own_alpha(world: World) -> None:
    alphas = {epoch: reference.stream(1, "search", 0, "alpha", epoch).random(STEPS).tolist() for epoch in range(EPOCHS)}
    seen: list[float] = []

    @contextmanager
    def view(alpha: float) -> Iterator[None]:
        seen.append(alpha)
        yield

    reports = run(network(), world, view=view)
    assert seen == alphas[0] + alphas[1]
    assert [report.alpha_mean for report in reports] == pytest.approx(
        [sum(alphas[epoch]) / STEPS for epoch in range(EPOCHS)], rel=1e-15
    )
    seen.clear()
    run(network(), world, view=view, begin=(1, 2))
    assert seen == alphas[1][2:]


def test_the_first_of_several_bad_steps_is_named(world: World) -> None:
    noise = SgdNoise(1, ("search", 0))
    batches = Fixed(bad_step=int(noise.permutation(0, STEPS)[1]))
    with pytest.raises(NonFiniteLossError, match=" epoch 0, step 1 "):
        run(network(), world, batches=batches, noise=noise)
