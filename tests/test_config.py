"""Test the settings: schedules, validation of values, and the JSON round trip."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from harness.config import (
    ComparisonConfig,
    DataConfig,
    GemMinerConfig,
    ModelConfig,
    OptimConfig,
    Schedule,
    TicketConfig,
    known,
    search_from_json,
    to_json,
)
from recipes.presets.paper import imagenet
from recipes.presets.small import digits


@pytest.mark.parametrize("minutes", [-1, float("inf"), float("nan")])
def test_an_invalid_stuck_limit_is_refused(minutes):
    for settings in (lambda: replace(digits(), stuck_after=minutes), lambda: TicketConfig("t", stuck_after=minutes)):
        with pytest.raises(ValueError, match=f"stuck_after is {minutes}; it must be a finite number of minutes"):
            settings()


@pytest.mark.parametrize("config", [digits(), imagenet()])
def test_json_round_trip(config):
    assert search_from_json(to_json(config)) == config


def test_step_schedule_falls_at_half_and_three_quarters():
    schedule = Schedule(100, "step")
    factors = [schedule.lr_factor(epoch) for epoch in (0, 49, 50, 74, 75, 99)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_milestones_are_whole_quarters():
    """Check the milestones E//2 and (E//4)·3 of the paper's scripts.

    For 30 epochs they are 15 and 21, not 22.
    """
    schedule = Schedule(30, "step")
    assert [schedule.lr_factor(epoch) for epoch in (14, 15, 20, 21)] == pytest.approx([1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize(
    ("given", "epochs", "moved"),
    [
        ((80, 120), 320, (160, 240)),
        ((80, 120), 20, (10, 15)),
        ((80, 120), 1, (1, 1)),  # never 0, which would start at a reduced rate
        ((80, 120), 160, (80, 120)),
        (None, 20, None),  # the default follows the length by itself
    ],
)
def test_milestones_move_with_the_length(given, epochs, moved):
    assert Schedule(160, "step", given).of_length(epochs) == Schedule(epochs, "step", moved)
    assert Schedule(160, "cosine").of_length(epochs) == Schedule(epochs, "cosine")
    assert Schedule(0, "step", (80, 120)).of_length(epochs) == Schedule(epochs, "step"), "no length to move them from"
    assert Schedule(0, "constant").of_length(epochs) == Schedule(epochs, "constant")


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_no_training_starts_at_a_reduced_learning_rate(epochs):
    assert Schedule(epochs, "step").lr_factor(0) == 1


def test_settings_of_the_other_optimizer_are_not_in_the_key():
    assert OptimConfig("adam", momentum=0.5).determinants() == OptimConfig("adam").determinants()
    assert OptimConfig("sgd", betas=(0.5, 0.9)).determinants() == OptimConfig("sgd").determinants()
    assert OptimConfig("sgd", momentum=0.5).determinants() != OptimConfig("sgd").determinants()
    assert OptimConfig("adam", betas=(0.5, 0.9)).determinants() != OptimConfig("adam").determinants()


def test_images_for_batchnorm_statistics():
    assert ComparisonConfig().num_bn_images(60_000) == 10_000
    assert ComparisonConfig().num_bn_images(500) == 500
    assert ComparisonConfig(bn_images="all").num_bn_images(60_000) == 60_000
    assert ComparisonConfig(bn_convention="ema").num_bn_images(60_000) == 60_000
    assert ComparisonConfig(bn_convention="ema", bn_images="all").num_bn_images(60_000) == 60_000
    assert ComparisonConfig(bn_convention="none").num_bn_images(60_000) == 0


def test_cosine_schedule_is_torchs():
    import torch

    param = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([param], lr=0.2)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30, eta_min=0.2e-3)
    for epoch in range(30):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2 * Schedule(30, "cosine").lr_factor(epoch))
        optimizer.step()
        reference.step()


def test_an_unknown_name_lists_known_names_and_the_nearest():
    with pytest.raises(ValueError, match=r"unknown method 'lrrr' \(did you mean 'lrr'\?\); known: aws, lrr"):
        known("method", "lrrr", ["lrr", "aws"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule(-1, "constant"), "epochs is -1"),
        (lambda: replace(digits(), evaluate_every=-1), "evaluate_every is -1"),
        (lambda: TicketConfig("t", evaluate_every=-1), "evaluate_every is -1"),
        (lambda: OptimConfig(momentum=1.0), "optim.momentum is 1.0"),
        (lambda: OptimConfig(betas=(0.9, 1.0)), "optim.betas"),
        (lambda: OptimConfig(max_grad_norm=0.0), "optim.max_grad_norm is 0.0"),
        (lambda: OptimConfig(lr=0.0), "optim.lr is 0.0"),
        (lambda: DataConfig("digits", num_workers=0), "data.num_workers is 0"),
        (lambda: ComparisonConfig(bn_images=0), "bn_images is 0"),
        (lambda: ComparisonConfig(num_alphas=1), "num_alphas is 1"),
        (lambda: ComparisonConfig(bn_convention="ema", bn_images=500), "uses all training images; remove --bn-images"),
        (lambda: ComparisonConfig(bn_convention="none", bn_images=500), "500 has no effect .* uses no images"),
        (lambda: ComparisonConfig(bn_convention="none", bn_images="all"), "give --bn-convention cumulative"),
    ],
)
def test_bad_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


INFINITE = {
    "optim.lr": lambda x: OptimConfig(lr=x),
    "optim.weight_decay": lambda x: OptimConfig(weight_decay=x),
    "optim.momentum": lambda x: OptimConfig(momentum=x),
    "optim.betas": lambda x: OptimConfig("adam", betas=(0.9, x)),
    "optim.max_grad_norm": lambda x: OptimConfig(max_grad_norm=x),
    "gem_miner.lr": lambda x: GemMinerConfig(lr=x),
    "gem_miner.finetune_lr": lambda x: GemMinerConfig(finetune_lr=x),
    "gem_miner.penalty": lambda x: GemMinerConfig(penalty=x),
    "gem_miner.finetune_weight_decay": lambda x: GemMinerConfig(finetune_weight_decay=x),
    "gem_miner.momentum": lambda x: GemMinerConfig(momentum=x),
    "checkpoint_every": lambda x: replace(digits(), checkpoint_every=x),
    "stuck_after": lambda x: replace(digits(), stuck_after=x),
    "pruning_fraction": lambda x: replace(digits(), pruning_fraction=x),
    "densities": lambda x: replace(digits(), densities=(x,), num_levels=1),
}


@pytest.mark.parametrize("number", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("name", INFINITE)
def test_infinite_settings_are_refused_by_name(name, number):
    with pytest.raises(ValueError, match=f"^(--)?{name.replace('_', '[-_]')} .*{number}.* must") as caught:
        INFINITE[name](number)
    assert "\n" not in str(caught.value)


def test_paths_that_are_not_utf_8_are_refused_by_name():
    path = Path(os.fsdecode(b"r\xff"))
    for make, name in (
        (lambda: replace(digits(), runs=path), "runs"),
        (lambda: replace(digits(), initialisation=str(path)), "initialisation"),
        (lambda: DataConfig("digits", directory=path), "data.directory"),
        (lambda: TicketConfig("0123", runs=path), "runs"),
    ):
        with pytest.raises(ValueError, match=rf"^{name} is 'r\\udcff'; it must be text in UTF-8"):
            make()


@pytest.mark.parametrize(
    "fault", [{"momentum": 1.0}, {"momentum": -0.1}, {"finetune_weight_decay": -1e-4}, {"penalty": -1.0}], ids=str
)
def test_gem_miners_settings_are_checked_before_its_first_training(fault):
    with pytest.raises(ValueError, match=rf"^gem_miner\.{next(iter(fault))} is .*; it must"):
        GemMinerConfig(**fault)


@pytest.mark.parametrize("width", [0, -1])
def test_a_width_below_one_is_refused(width):
    with pytest.raises(ValueError, match=f"model.width is {width}; it must be 1 or more"):
        ModelConfig("resnet8", width=width)
