"""Test evaluation over ranks: each image once, in order."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from harness.data.loaders import eval_share
from harness.training.evaluate import Evaluation, evaluate
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
