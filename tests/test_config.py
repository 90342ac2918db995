"""Settings: defaults in one place, bad values refused, JSON gives back the same."""

import pytest

from harness.config import Schedule, known, search_from_json, to_json
from recipes.aws_digits import config as digits
from recipes.aws_imagenet import config as imagenet


@pytest.mark.parametrize("config", [digits(), imagenet()])
def test_json_round_trip(config):
    assert search_from_json(to_json(config)) == config


def test_step_schedule_falls_at_half_and_three_quarters():
    schedule = Schedule(100, "step")
    factors = [schedule.lr_factor(epoch) for epoch in (0, 49, 50, 74, 75, 99)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_cosine_schedule_is_torchs():
    import torch

    param = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([param], lr=0.2)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30, eta_min=0.2e-3)
    for epoch in range(30):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2 * Schedule(30, "cosine").lr_factor(epoch))
        optimizer.step()
        reference.step()


def test_unknown_name_lists_the_known_and_the_nearest():
    with pytest.raises(ValueError, match=r"unknown method 'lrrr' \(did you mean 'lrr'\?\); known: aws, lrr"):
        known("method", "lrrr", ["lrr", "aws"])


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="epochs is -1"):
        Schedule(-1, "constant")
