"""Test that a resumed training gives the bits of an uninterrupted one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.config import OptimConfig
from harness.distributed.stop import StoppedError
from harness.masks import Mask
from tests.training.small_training import EPOCHS, STEPS, Memory, network, noisy, run, some_mask


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("adam", "aws"),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (("sgd", "aws"), ("sgd", "lrr"), ("adam", "lrr"))),
    ],
)
def test_interrupted_after_any_step_it_ends_with_the_same_bits(world, name, method):
    options = {"optim": OptimConfig(name=name, lr=0.05, weight_decay=1e-2, max_grad_norm=0.5), "method": method}
    through = noisy()
    expected = run(through, world, **options)
    for stop_after in range(1, EPOCHS * STEPS + 1):
        memory = Memory(world, stop_after)
        torch.manual_seed(99)  # the global generator must not matter
        with pytest.raises(StoppedError, match="SIGTERM"):
            run(noisy(), world, **options, saver=memory)
        world.stop._signal, memory.stop_after = None, None
        again = noisy()
        reports = run(again, world, **options, saver=memory)
        for key, value in through.state_dict().items():
            assert torch.equal(again.state_dict()[key], value), (stop_after, key)
        for ours, theirs in zip(reports[::-1], expected[::-1], strict=False):
            assert (ours.epoch, ours.train_loss, ours.train_error_percent, ours.lr) == (
                theirs.epoch,
                theirs.train_loss,
                theirs.train_error_percent,
                theirs.lr,
            )


def test_a_network_that_begins_to_draw_later_resumes_to_the_same_bits(world):
    """Start dropout in the fourth step. Every step has its own seed, so a resumed training draws the same."""

    class Later(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return torch.dropout(x, 0.3, self.training) if self.calls > 3 else x

    def trained(memory: Memory | None, seed: int) -> dict[str, torch.Tensor]:
        model = network()
        model = nn.Sequential(*list(model)[:-1], Later(), model[-1])
        torch.manual_seed(seed)  # the global generator must not matter
        run(model, world, saver=memory)
        return model.state_dict()

    through = trained(None, 1)
    for stop_after in (1, 3, 4):
        memory = Memory(world, stop_after)
        with pytest.raises(StoppedError):
            trained(memory, 2)
        world.stop._signal, memory.stop_after = None, None
        again = trained(memory, 3)
        assert all(torch.equal(again[key], value) for key, value in through.items()), stop_after


def test_a_step_seeds_the_cpu_and_its_own_device_only(world, monkeypatch):
    own, every = list[int](), list[int]()
    monkeypatch.setattr(torch.cuda, "manual_seed", own.append)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", every.append)
    monkeypatch.setattr(world, "device", torch.device("cuda"))
    world.seed(5)
    assert torch.initial_seed() == 5 and (own, every) == ([5], [])


def test_a_stop_between_epochs_repeats_no_report(world):
    memory = Memory(world, stop_after=STEPS)
    with pytest.raises(StoppedError):
        run(noisy(), world, saver=memory)
    assert memory.state is not None and (memory.state.epoch, memory.state.step) == (0, STEPS)
    world.stop._signal, memory.stop_after = None, None
    assert [report.epoch for report in run(noisy(), world, saver=memory)] == [0, 1]


def test_every_step_draws_dropout_from_a_stream_of_its_own(world):
    class Seeds(nn.Module):
        seen: list[int] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.append(torch.initial_seed())
            return x

    model = network()
    run(nn.Sequential(*list(model)[:-1], Seeds(), model[-1]), world)
    assert len(set(Seeds.seen)) == len(Seeds.seen) == EPOCHS * STEPS


def test_a_resume_under_another_mask_is_refused(world):
    """Resume with a different mask.

    It may result from pruning on another device.
    """
    memory, mask = Memory(world, stop_after=STEPS), some_mask(network())
    with pytest.raises(StoppedError):
        run(network(), world, saver=memory, mask=mask)
    world.stop._signal, memory.stop_after = None, None
    others = Mask({name: ~kept for name, kept in mask.tensors.items()})
    with pytest.raises(ValueError, match="the interrupted training had another mask"):
        run(network(), world, saver=memory, mask=others)
    assert [report.epoch for report in run(network(), world, saver=memory, mask=mask)] == [0, 1]
