"""Test that SignPruner in a plain loop gives the bits of the recipes."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from harness import SignPruner
from harness.checkpoint import Checkpoint
from harness.experiment.experiment import Experiment
from harness.experiment.search import search
from harness.models import classifier_of
from harness.pruning import METHODS
from recipes.presets.small import digits
from tests.pruning.searching import STEPS

DERIVED = ("imp", "magnitude_increase", "aws_full", "lrr_full", "dense")
OTHERS = [
    *("wr", "snip", "synflow", "random", "lrr_bn_rewind"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in DERIVED),
]


def in_a_plain_loop(experiment: Experiment) -> dict[int, tuple[Checkpoint, SignPruner, torch.Tensor]]:
    """Search with SignPruner, at the seeds, batches and settings of the experiment.

    Returns:
        Network, kept weights and α of the last step, by level.
    """
    # The network at θ_init, as `search` creates it.
    config, method = experiment.config, METHODS[experiment.config.method]
    model = deepcopy(experiment.blank)
    experiment.theta_init(config.init_seed).load_into_(model)
    rewinds = {"rewind_steps": config.rewind_to * STEPS} if config.method == "wr" else {}
    pruner = SignPruner(model, config.method, classifier=classifier_of("resnet8"), seed=config.sgd_seed, **rewinds)

    def batches():
        noise = replace(method.noise(config, 0), scope=("ranking",))
        return list(experiment.train_feed.epoch(noise, 0, num_steps=1))

    # The loop of docs/python.md, with the learning-rate schedule and the data order of the recipe.
    found, optim = {}, config.optim
    options = {"num_levels": config.num_levels, "steps_per_epoch": STEPS, "batches": batches}
    for level in pruner.levels(**options):
        schedule, noise = method.schedule(config, level.number), method.noise(config, level.number)
        optimizer = pruner.attach(
            torch.optim.SGD(model.parameters(), optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)
        )
        for epoch in range(level.begin_steps // STEPS, schedule.epochs):
            optimizer.param_groups[0]["lr"] = optim.lr * schedule.lr_factor(epoch)
            for images, labels in experiment.train_feed.epoch(noise, epoch):
                with pruner.step():
                    nn.functional.cross_entropy(model(images), labels).backward()
                optimizer.step()
                optimizer.zero_grad()
        network = Checkpoint.of(model, level=level.number, epochs=0, level_digest="")
        found[level.number] = network, pruner.signed_mask(), pruner._training._alphas[:STEPS]
    return found


def compared(experiment: Experiment) -> None:
    """Check parameters, buffers, masks and signs of each level against those of the search."""
    own, theirs = in_a_plain_loop(experiment), {run.checkpoint.level: run for run in search(experiment).levels}
    assert own.keys() == {level for level, run in theirs.items() if run.checkpoint.epochs}
    for number, (network, signs, alphas) in own.items():
        run = theirs[number]
        expected = METHODS[experiment.config.method].noise(experiment.config, number)
        last = METHODS[experiment.config.method].schedule(experiment.config, number).epochs - 1
        assert alphas.tolist() == expected.alphas(last, STEPS).tolist()
        assert network.digest == run.checkpoint.digest, f"level {number}"
        assert signs.mask.equal(run.mask) and signs.digest == run.signed_mask.digest
        assert (number == 0) == (signs.density == 1) or experiment.config.method == "dense"


@pytest.mark.parametrize("method", ["aws", "lrr"])
def test_two_levels_have_the_bits_of_the_recipe_for_the_digits(experiment: Experiment, method: str) -> None:
    """Use the settings of recipes/aws_digits.py with a smaller network, larger batches and fewer epochs."""
    own = experiment.config
    small = {"model": own.model, "global_batch_size": own.global_batch_size, "final": own.final}
    config = replace(digits(), data=own.data, runs=own.runs, **small, warmup_epochs=2, level_epochs=2, num_levels=2)
    compared(Experiment(experiment.world, experiment.store, replace(config, method=method)))


@pytest.mark.parametrize("method", OTHERS)
def test_the_other_methods_have_the_bits_of_their_search(experiment: Experiment, method: str) -> None:
    compared(experiment.using(method))
