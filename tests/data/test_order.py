"""Test the division of epochs and test splits among ranks."""

from __future__ import annotations

import numpy as np
import pytest

from harness.common.seeds import SgdNoise
from harness.data.loaders import TrainOrder, eval_share

NOISE = SgdNoise(1, ("search", 0))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_together_see_the_permutation_once(world_size: int) -> None:
    slices = [TrainOrder(100, 12, rank, world_size).indices(NOISE, 3, 0, None) for rank in range(world_size)]
    seen = np.concatenate(slices, axis=1).reshape(-1)  # concatenates the ranks' slices of each global batch
    assert (seen == NOISE.permutation(3, 100)[:96]).all()
    assert len(np.unique(seen)) == 96


def test_order_is_a_permutation_that_epoch_level_and_seed_change() -> None:
    orders = [
        TrainOrder(50, 5, 0, 1).indices(noise, epoch, 0, None).reshape(-1)
        for noise, epoch in ((NOISE, 0), (NOISE, 1), (SgdNoise(2, ("search", 0)), 0), (SgdNoise(1, ("search", 1)), 0))
    ]
    for order in orders:
        assert sorted(order) == list(range(50))
    assert len({order.tobytes() for order in orders}) == 4


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_together_see_each_chosen_sample_once(world_size: int) -> None:
    chosen = np.arange(0, 200, 2)[::-1].copy()
    orders = [TrainOrder(100, 12, rank, world_size, chosen) for rank in range(world_size)]
    seen = np.concatenate([order.indices(NOISE, 3, 0, None) for order in orders], axis=1).reshape(-1)
    assert (seen == chosen[NOISE.permutation(3, 100)[:96]]).all() and (seen % 2 == 0).all()
    assert orders[0].steps_per_epoch == 8 and len(np.unique(seen)) == 96


def test_a_part_of_an_epoch_is_a_slice_of_the_whole() -> None:
    order = TrainOrder(100, 10, 1, 2)
    whole = order.indices(NOISE, 0, 0, None)
    assert (order.indices(NOISE, 0, 3, 4) == whole[3:7]).all()
    assert (order.indices(NOISE, 0, 3, 4, every=3) == whole[[3, 6]]).all()
    assert order.indices(NOISE, 0, 10, None).shape == (0, 5)
    with pytest.raises(ValueError, match="steps 8 to 11"):
        order.indices(NOISE, 0, 8, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 11, 0, 1), "10 samples, fewer than one global batch of 11"),
        ((10, 5, 0, 2), "5 is not divisible by 2 processes"),
        ((10, 4, 2, 2), "rank 2 of 2"),
        ((10, 0, 0, 1), "at least 1"),
    ],
)
def test_invalid_shares_are_refused(arguments: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainOrder(*arguments)


@pytest.mark.parametrize("num_samples", [1, 2, 500, 10_000])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_evaluation_shares_are_a_partition(num_samples: int, world_size: int) -> None:
    shares = [eval_share(num_samples, rank, world_size) for rank in range(world_size)]
    assert [index for share in shares for index in share] == list(range(num_samples))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
