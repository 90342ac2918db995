"""Test the re-estimation of BatchNorm statistics against statistics computed by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from harness.training.batchnorm import reestimate_batchnorm
from tests.thread_ranks import ThreadRank, on_ranks


class TwoNorms(nn.Module):
    """A small network: conv → bn → relu → dropout → conv → bn → linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(4, momentum=0.3)
        self.drop = nn.Dropout(0.5)
        self.conv2 = nn.Conv2d(4, 3, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(torch.relu(self.bn1(self.conv1(x))))
        return self.fc(self.bn2(self.conv2(x)).mean((2, 3)))


def batch_statistics(model: TwoNorms, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return each norm's input mean and unbiased variance, per channel.

    Both are in float64. Written without nn.BatchNorm2d and without dropout.
    """
    model = copy.deepcopy(model).double()
    before_1 = model.conv1(x.double())
    mean, var = before_1.mean((0, 2, 3)), before_1.var((0, 2, 3), correction=0)
    scaled = (before_1 - mean[:, None, None]) / (var + model.bn1.eps).sqrt()[:, None, None]
    hidden = torch.relu(scaled * model.bn1.weight[:, None, None] + model.bn1.bias[:, None, None])
    before_2 = model.conv2(hidden)
    return [(b.mean((0, 2, 3)).detach(), b.var((0, 2, 3), correction=1).detach()) for b in (before_1, before_2)]


@pytest.fixture
def model() -> TwoNorms:
    torch.manual_seed(0)
    model = TwoNorms()
    for norm in (model.bn1, model.bn2):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 1, 2)
    return model


@pytest.fixture
def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 2, 8, 8, generator=generator) * (i + 1) + i for i, n in enumerate((16, 16, 16, 5))]


def test_cumulative_is_the_mean_over_batches_of_batch_statistics(model, batches):
    expected = [batch_statistics(model, x) for x in batches]
    assert reestimate_batchnorm(model, batches, "cumulative") == 4
    for layer, norm in enumerate((model.bn1, model.bn2)):
        mean = torch.stack([e[layer][0] for e in expected]).mean(0)
        var = torch.stack([e[layer][1] for e in expected]).mean(0)  # the batch of 5 counts as much as one of 16
        torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var.double(), var, rtol=1e-4, atol=1e-5)
        assert int(norm.num_batches_tracked) == 4


@pytest.mark.parametrize(("convention", "step"), [("cumulative", -1), ("ema", 1)])
def test_old_statistics_are_discarded_and_cumulative_ignores_the_order(model, batches, convention, step):
    other = copy.deepcopy(model)
    other.bn1.running_mean.fill_(1e6)
    reestimate_batchnorm(model, batches, convention)
    reestimate_batchnorm(other, batches[::step], convention)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(dict(other.named_buffers())[name], buffer)


def test_ema_folds_the_batches_with_momentum_a_tenth_into_mean_0_and_variance_1(model, batches):
    """Start from mean 0 and variance 1, as the paper's scripts do.

    They copy only weights and biases into a new network before its statistics are updated.
    """
    running = [(torch.zeros(n).double(), torch.ones(n).double()) for n in (4, 3)]
    for x in batches:
        new = batch_statistics(model, x)
        running = [(0.9 * m + 0.1 * a, 0.9 * v + 0.1 * b) for (m, v), (a, b) in zip(running, new, strict=True)]
    assert reestimate_batchnorm(model, iter(batches), "ema") == 4
    for norm, (mean, var) in zip((model.bn1, model.bn2), running, strict=True):
        torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var.double(), var, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("convention", ["cumulative", "ema"])
def test_leaves_modes_momenta_parameters_and_the_generator_as_found(model, batches, convention):
    model.train()
    model.bn2.eval()  # a frozen norm must stay frozen
    parameters = {name: p.clone() for name, p in model.named_parameters()}
    modes = {name: m.training for name, m in model.named_modules()}
    state = torch.get_rng_state()
    reestimate_batchnorm(model, batches, convention)
    assert torch.equal(torch.get_rng_state(), state)  # active dropout would draw from it
    assert {name: m.training for name, m in model.named_modules()} == modes
    assert (model.bn1.momentum, model.bn2.momentum) == (0.3, 0.1)
    assert all(torch.equal(p, parameters[name]) and p.grad is None for name, p in model.named_parameters())


def test_restores_the_modes_when_a_batch_fails(model):
    model.train()
    with pytest.raises(RuntimeError):
        reestimate_batchnorm(model, [torch.zeros(2, 9, 8, 8)], "cumulative")
    assert model.drop.training
    assert model.bn1.momentum == 0.3


def test_a_network_without_batchnorm_is_left_alone_and_draws_nothing():
    def never():
        raise AssertionError("drew a batch")
        yield

    norms = nn.ModuleList([nn.LayerNorm(4), nn.GroupNorm(1, 4), nn.BatchNorm2d(4, track_running_stats=False)])
    assert reestimate_batchnorm(norms, never(), "cumulative") == 0


def test_no_batches_is_an_error_and_keeps_the_old_statistics(model):
    before = model.bn1.running_mean.clone()
    with pytest.raises(ValueError, match="no batches"):
        reestimate_batchnorm(model, [], "cumulative")
    assert torch.equal(model.bn1.running_mean, before)


def test_an_unknown_convention_names_the_known_ones(model):
    with pytest.raises(ValueError, match="'cumulate'; known: cumulative, ema"):
        reestimate_batchnorm(model, [], "cumulate")


@pytest.mark.parametrize("convention", ["cumulative", "ema"])
def test_one_process_gives_the_bits_of_torchs_own_momentum(model, batches, convention):
    plain = copy.deepcopy(model)
    for norm in (plain.bn1, plain.bn2):
        norm.momentum = None if convention == "cumulative" else 0.1
        norm.train()
        norm.reset_running_stats()
    plain.drop.eval()
    with torch.no_grad():
        for x in batches * 5:
            plain(x)
    reestimate_batchnorm(model, batches * 5, convention)
    assert all(torch.equal(one, plain.get_buffer(name)) for name, one in model.named_buffers())


def shared(model: nn.Module, batches: list[torch.Tensor], convention: str, size: int) -> list[nn.Module | Exception]:
    """Re-estimate on `size` ranks; return each rank's network or error.

    The ranks share the batches.
    """

    def work(ranks: ThreadRank) -> nn.Module:
        own = copy.deepcopy(model)
        dealt = batches[ranks.rank :: size]
        assert reestimate_batchnorm(own, dealt, convention, ranks=ranks, num_batches=len(batches)) == len(batches)
        return own

    return on_ranks(size, work)


@pytest.mark.parametrize("convention", ["cumulative", "ema"])
@pytest.mark.parametrize(("size", "num_batches"), [(2, 4), (2, 3), (3, 4), (3, 2), (4, 1)])
def test_several_ranks_give_what_one_gives(model, batches, convention, size, num_batches):
    batches = batches[-num_batches:]
    ranks = shared(model, batches, convention, size)
    reestimate_batchnorm(model, batches, convention)
    for rank in ranks:
        assert isinstance(rank, nn.Module), rank
        for name in ("bn1.running_mean", "bn1.running_var", "bn2.running_mean", "bn2.running_var"):
            torch.testing.assert_close(rank.get_buffer(name), model.get_buffer(name), rtol=1e-5, atol=1e-6)
            assert torch.equal(rank.get_buffer(name), ranks[0].get_buffer(name))


def test_the_weights_of_a_long_pass_neither_vanish_nor_overflow():
    """Use 8000 batches with the convention "ema".

    0.9^8000 underflows in double precision, yet the last batches must count.
    """
    generator = torch.Generator().manual_seed(2)
    batches = [torch.randn(4, 2, generator=generator) + i / 1000 for i in range(8000)]
    for one, two in zip(*(shared(nn.BatchNorm1d(2), batches, "ema", size) for size in (1, 2)), strict=False):
        torch.testing.assert_close(two.running_mean, one.running_mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(two.running_var, one.running_var, rtol=1e-5, atol=1e-6)
        assert 7.5 < float(two.running_mean.mean()) < 8.5


def test_a_share_that_is_not_the_ranks_own_is_refused_on_every_rank(model, batches):
    def work(ranks: ThreadRank) -> None:
        dealt = batches[ranks.rank :: 2] if ranks.rank == 0 else batches
        reestimate_batchnorm(copy.deepcopy(model), dealt, "cumulative", ranks=ranks, num_batches=4)

    first, second = on_ranks(2, work)
    assert str(second) == "rank 1 of 2 has 4 of 4 batches; its share is 2"
    assert str(first) == "rank 1 failed"
    (unsaid, _) = on_ranks(2, lambda ranks: reestimate_batchnorm(model, batches, "cumulative", ranks=ranks))
    assert "give num_batches" in str(unsaid)


def test_no_batches_on_any_rank_is_an_error_and_keeps_the_old_statistics(model):
    before = model.bn1.running_mean.clone()
    ends = on_ranks(2, lambda ranks: reestimate_batchnorm(model, [], "cumulative", ranks=ranks, num_batches=0))
    assert ["no batches" in str(end) for end in ends] == [True, True]
    assert torch.equal(model.bn1.running_mean, before)


@pytest.mark.parametrize("convention", ["cumulative", "ema"])
def test_a_batch_of_one_value_a_channel_names_the_option(convention):
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4))
    batches = [torch.randn(2, 4), torch.randn(1, 4)]
    with pytest.raises(ValueError, match="a batch has 1 image; choose another number of images, e.g. with --bn-images"):
        reestimate_batchnorm(model, batches, convention)
    assert not model[1].training or model.training, "modes are restored"
