"""Test evaluation over ranks: each image once, in order."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from harness.data.loaders import eval_share
from harness.training.evaluate import Evaluation, error_so_far, evaluate
from tests.thread_ranks import ThreadRank, on_ranks

N = 11
LOGITS_NK = torch.randn(N, 3, generator=torch.Generator().manual_seed(1))
LABELS_N = torch.randint(3, (N,), generator=torch.Generator().manual_seed(2))
RIGHT_N = LOGITS_NK.argmax(1) == LABELS_N


def evaluated(size: int, *, lost: int | None = None) -> list[Evaluation | Exception]:
    """Evaluate given logits on `size` ranks in batches of 2.

    Rank `lost` lacks its last image.
    """

    def work(rank: ThreadRank) -> Evaluation:
        rank.device = torch.device("cpu")
        share = eval_share(N, rank.rank, size)
        own = slice(share.start, share.stop - (rank.rank == lost))
        batches = list(zip(LOGITS_NK[own].split(2), LABELS_N[own].split(2), strict=True)) if len(share) else []
        return evaluate(nn.Identity(), batches, rank, num_images=N)

    return on_ranks(size, work)


@pytest.mark.parametrize("size", [1, 2, 3, N + 4])
def test_answers_are_in_the_order_of_the_data_set(size: int) -> None:
    """Evaluate 11 images; with 15 ranks, four of them have none."""
    assert 0 < RIGHT_N.sum() < N
    for found in evaluated(size):
        assert torch.equal(found.correct_N, RIGHT_N) and found.correct_N.dtype == torch.bool
        assert (found.num_correct, found.num_images) == (int(RIGHT_N.sum()), N)
        assert found.error_percent == 100.0 * (N - found.num_correct) / N
        assert found.loss == pytest.approx(float(F.cross_entropy(LOGITS_NK, LABELS_N)), rel=1e-6)


@pytest.mark.parametrize("size", [1, 3])
def test_a_lost_image_ends_all_ranks(size: int) -> None:
    for error in evaluated(size, lost=size - 1):
        assert isinstance(error, RuntimeError) and str(error) == f"evaluation saw {N - 1} images of {N}"


@pytest.mark.parametrize("size", [1, 2])
def test_a_network_in_training_stays_as_it_was(size: int) -> None:
    """Give each rank other BatchNorm statistics, and check that all find the error with those of rank 0."""

    # Phase: evaluate a network in training on each rank, and compare its tensors and modes with those before
    def network(rank: int) -> nn.Sequential:
        model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.BatchNorm1d(3)).train()
        model[2].eval()  # a module that stays in evaluation mode
        model[0].running_mean.copy_(torch.arange(3.0) * (rank - 2))
        return model

    def work(rank: ThreadRank) -> tuple[float, bool]:
        rank.device, model, share = torch.device("cpu"), network(rank.rank), eval_share(N, rank.rank, size)
        batches = [(LOGITS_NK[share.start : share.stop], LABELS_N[share.start : share.stop])]
        found = error_so_far(model, batches, rank, num_images=N)
        before = network(rank.rank).state_dict()
        same = all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        return found, same and [module.training for module in model.modules()] == [True, True, True, False]

    # Phase: the error is that of the network of rank 0, which differs from that of rank 1
    def alone(rank: ThreadRank) -> list[float]:
        rank.device = torch.device("cpu")
        batches = [(LOGITS_NK, LABELS_N)]
        return [evaluate(network(number), batches, rank, num_images=N).error_percent for number in (0, 1)]

    ((expected, other),) = on_ranks(1, alone)
    assert expected != other and on_ranks(size, work) == [(expected, True)] * size
