"""Test Gem-Miner's score training against plain autograd."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from harness.checkpoint import Checkpoint
from harness.common.seeds import SgdNoise
from harness.config import GemMinerConfig, OptimConfig, Schedule
from harness.distributed.stop import StoppedError
from harness.masks import Mask
from harness.pruning.gem_miner import (
    SCORES,
    ScoreTraining,
    draw_scores,
    freeze_lowest,
    kept_counts,
    most_kept,
    num_freezings,
)
from tests.training.small_training import STEPS, Fixed, Memory, network, run

EPOCHS, EVERY, DENSITY, PENALTY, LR = 7, 2, 0.3, 0.001, 1.0
SCORED = ("0.weight", "4.weight")
GEM = GemMinerConfig(score_epochs=EPOCHS, lr=LR, penalty=PENALTY, freeze_every_epochs=EVERY)
EXACT = replace(GEM, freezing="exact")
NOISE = SgdNoise(1, ("search", 0))


def start(gem=GEM, density=DENSITY):
    """Return a network of scores, its weights, and the score training."""
    model = network()
    weights = {name: param.detach().clone() for name, param in model.named_parameters()}
    scores = draw_scores({name: weights[name].shape for name in SCORED}, init_seed=5)
    for name, param in model.named_parameters():
        if name in scores:
            param.data.copy_(scores[name])
        else:
            param.requires_grad_(False)
    return model, weights, ScoreTraining(weights, SCORED, density, gem)


def trained(world, gem=GEM, density=DENSITY, **options):
    model, weights, scoring = start(gem, density)
    optim, schedule = GEM.scoring()
    settings = {"optim": optim, "schedule": schedule, "hook": scoring, "noise": NOISE}
    settings["mask"] = Mask.dense(weights, SCORED)
    run(model, world, **(settings | {"view": lambda alpha: scoring.view(alpha)} | options))
    return model, scoring


def freeze_together_(p, q, share):
    """Freeze scores in place as the authors' `prune` does.

    Scores equal to the threshold are frozen, too. q stays 1 only above the ⌈share · live⌉-th lowest of the live scores.

    Returns:
        The number of live scores equal to the threshold.
    """
    live = torch.cat([score[q[name] == 1] for name, score in p.items()]).sort().values
    threshold = live[math.ceil(share * len(live)) - 1]
    for name in SCORED:
        q[name] = ((q[name] + (p[name] > threshold).float()) == 2).float()
    return int((live == threshold).sum())


def freeze_exactly_(p, q, share):
    live = torch.cat([score[q[name] == 1] for name, score in p.items()]).sort().values
    kept = int((1 - share) * len(live))
    assert live[len(live) - kept] > 0, (
        "the threshold must lie above scores clipped to 0, whose ties position would break"
    )
    for name in SCORED:
        q[name] *= (p[name] >= live[len(live) - kept]).float()


def written_out(gem, density):
    """Train the scores with plain autograd.

    The loss is cross-entropy + λ‖p‖², with a straight-through gradient, clipping to [0, 1], and freezing of the lowest.

    Returns:
        Scores p, masks q, and the number of scores at the threshold of each freezing.
    """
    # Phase: weights, scores p, masks q and momentum
    model, weights, _ = start()
    others = {name: weights[name] for name in weights if name not in SCORED}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    p = {name: dict(model.named_parameters())[name].detach().clone() for name in SCORED}
    q = {name: torch.ones_like(score) for name, score in p.items()}
    velocity = {name: torch.zeros_like(score) for name, score in p.items()}
    share = 1 - density ** (1 / math.floor((EPOCHS - 1) / EVERY))
    model.train()
    equal = []
    for epoch in range(EPOCHS):
        # Phase: learning rate, and exact freezing before the epoch
        lr = LR * (1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * epoch / EPOCHS)) / 2)
        if gem == EXACT and epoch and epoch % EVERY == 0:
            freeze_exactly_(p, q, share)
        # Phase: SGD steps
        for images, labels in Fixed().epoch(NOISE, epoch):
            leaves = {name: score.clone().requires_grad_() for name, score in p.items()}
            hard = {name: (leaf > 0.5).float() for name, leaf in leaves.items()}
            through = {name: hard[name] + leaf - leaf.detach() for name, leaf in leaves.items()}
            seen = {name: weights[name] * q[name] * through[name] for name in SCORED}
            logits = torch.func.functional_call(model, others | seen | buffers, (images,))
            penalty = PENALTY * sum((leaf**2).sum() for leaf in leaves.values())
            grads = torch.autograd.grad(F.cross_entropy(logits, labels) + penalty, list(leaves.values()))
            for name, grad in zip(leaves, grads, strict=True):
                velocity[name] = 0.9 * velocity[name] + grad
                p[name] = (p[name] - lr * velocity[name]).clamp(0, 1)
        # Phase: the authors' freezing after the epoch
        if gem == GEM and epoch and epoch % EVERY == 0:
            equal.append(freeze_together_(p, q, share))
    return p, q, equal


@pytest.mark.parametrize(
    ("gem", "density"), [(GEM, DENSITY), (GEM, 0.97), (EXACT, DENSITY)], ids=["authors", "equal scores", "exact"]
)
def test_scores_and_mask_are_those_of_the_written_out_method(world, gem, density):
    model, scoring = trained(world, gem, density)
    p, q, equal = written_out(gem, density)
    assert len(equal) == (3 if gem == GEM else 0)
    if density == 0.97:  # more scores are clipped to 0 than are to be frozen
        assert max(equal) > 1 and scoring.mask.density < 0.95
    before = draw_scores({name: score.shape for name, score in p.items()}, init_seed=5)
    for name in SCORED:
        assert torch.allclose(scoring.scores[name], p[name], atol=1e-4)
        assert torch.equal(scoring.mask.tensors[name], q[name] == 1)
        assert (p[name] - before[name]).abs().mean() > 0.05, "the scores must change"
        assert (p[name] == 0).any() and (p[name] == 1).any(), "some scores must reach both bounds"
    moved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert scoring.finish(Mask.dense(start()[1], SCORED)).equal(scoring.mask)
    found = Checkpoint.of(model, level=1, epochs=EPOCHS, level_digest="0" * 64)
    scores = scoring.networks(found)[SCORES].params
    assert scores.keys() == set(SCORED) and all(torch.equal(scores[name], moved[name]) for name in SCORED)
    weights = start()[1]
    for name, tensor in model.state_dict().items():
        if name in SCORED:
            assert torch.equal(tensor, weights[name] * q[name] * (scores[name] > 0.5))
        elif name in weights:
            assert torch.equal(tensor, weights[name]), "biases and norm parameters are frozen"
        else:
            assert torch.equal(tensor, moved[name])


@pytest.mark.parametrize("stop_after", [1, STEPS * EVERY, STEPS * EVERY + 3])
def test_a_resumed_score_training_ends_with_the_same_bits(world, stop_after):
    whole, expected = trained(world)
    memory = Memory(world, stop_after)
    with pytest.raises(StoppedError):
        trained(world, saver=memory)
    world.stop._signal = None
    resumed, scoring = trained(world, saver=memory)
    assert scoring.mask.equal(expected.mask)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_the_share_frozen_each_time_ends_at_the_density():
    """Check the freezing schedule of the authors' ResNet-32.

    It freezes every 5 of 150 epochs, down to 2 % of 465,000 weights.
    """
    assert num_freezings(150, 5) == 29
    counts = kept_counts(465_000, 0.02, 29)
    assert counts[-1] == pytest.approx(0.02 * 465_000, abs=29)
    shares = [1 - after / before for before, after in zip(counts, counts[1:], strict=False)]
    assert shares == pytest.approx([1 - 0.02 ** (1 / 29)] * 28, abs=1e-4)
    for after, before in zip(most_kept(465_000, 0.02, 29), [465_000, *counts], strict=False):
        assert after <= before, "more weights kept than planned"
    assert most_kept(465_000, 0.02, 29)[-1] == pytest.approx(counts[-1], abs=29)
    with pytest.raises(ValueError, match="train for 6 or more"):
        num_freezings(5, 5)


def frozen_after(gem):
    """Return the epochs with a freezing, and the live weights per epoch.

    Epochs count from 1; weights are frozen after them. The scores stay constant.
    """
    model = nn.Linear(40, 30)
    weights = {"weight": torch.ones(30, 40), "bias": torch.zeros(30)}
    model.weight.data = draw_scores({"weight": model.weight.shape}, 1)["weight"]
    scoring = ScoreTraining(weights, ["weight"], 0.02, gem)
    scoring.attach(model)
    lives = []
    for epoch in range(gem.score_epochs):
        scoring.after_epoch(epoch)
        lives.append(scoring.mask.num_remaining)
    before = [1200, *lives]
    return [epoch + 1 for epoch, live in enumerate(lives) if live < before[epoch]], lives


def test_scores_are_frozen_after_the_epochs_of_the_authors_and_exactly_one_earlier():
    """Compare the epochs with the authors' main loop.

    It prunes after epoch e, from 0, if e % 5 == 0 and e != 0.
    """
    epochs, lives = frozen_after(GemMinerConfig())
    assert epochs == [epoch + 1 for epoch in range(150) if epoch % 5 == 0 and epoch != 0]
    assert (epochs[0], epochs[-1], len(epochs)) == (6, 146, 29)
    live, share = 1200, 1 - math.exp(math.log(0.02) / 29)
    for epoch in epochs:
        live -= math.ceil(share * live)
        assert lives[epoch - 1] == live
    assert frozen_after(GemMinerConfig(freezing="exact"))[0] == [*range(5, 146, 5)]


def test_equal_scores_are_frozen_together_and_dead_ones_do_not_count():
    scores = {"a": torch.tensor([0.0, 0.0, 0.7, 0.9]), "b": torch.tensor([0.0, 0.2, 0.2, 1.0])}
    mask = Mask({"a": torch.tensor([True, True, True, True]), "b": torch.tensor([False, True, True, True])})
    first = freeze_lowest(scores, mask, 0.1)  # one of seven: both zeros of a
    assert first.tensors["a"].tolist() == [False, False, True, True] and first.num_remaining == 5
    second = freeze_lowest(scores, first, 0.2)  # one of five: both 0.2
    assert second.tensors["b"].tolist() == [False, False, False, True] and second.num_remaining == 3
    assert freeze_lowest(scores, second, 0.4).num_remaining == 1
    ones = {name: torch.ones_like(score) for name, score in scores.items()}
    with pytest.raises(ValueError, match=r"the lowest 10.0 % of 7 scores equal all others, so no weight would remain"):
        freeze_lowest(ones, mask, 0.1)


def test_default_settings_are_those_of_the_authors():
    optim, schedule = GemMinerConfig().scoring()
    assert optim == OptimConfig("sgd", lr=0.1, momentum=0.9, weight_decay=2e-5)  # the gradient of 1e-5 · ‖p‖²
    assert schedule == Schedule(150, "cosine")
    optim, schedule = GemMinerConfig().finetuning()
    assert optim == OptimConfig("sgd", lr=0.01, momentum=0.9, weight_decay=1e-4)
    assert schedule.epochs == 150
    factors = [schedule.lr_factor(epoch) for epoch in (79, 80, 119, 120, 149)]
    assert factors == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])
    assert (GemMinerConfig().freeze_every_epochs, GemMinerConfig().penalty) == (5, 1e-5)


def test_a_weight_is_used_only_above_a_score_of_one_half():
    model, weights, scoring = start()
    scoring.attach(model)
    params, half = dict(model.named_parameters()), torch.tensor(0.5)
    above, below = torch.nextafter(half, torch.tensor(1.0)), torch.nextafter(half, torch.tensor(0.0))
    for name in SCORED:
        scores = torch.stack([below, half, above])[torch.arange(params[name].numel()) % 3].view_as(params[name])
        params[name].data.copy_(scores)
        with scoring.view(1.0):
            assert torch.equal(params[name] != 0, (scores == above) & (weights[name] != 0))
        assert torch.equal(params[name], scores), "the scores must return"
