"""Gem-Miner's scores in the one loop, against the method written out with autograd (method, section 7)."""

import math

import pytest
import torch
import torch.nn.functional as F

from harness.checkpoint import Checkpoint
from harness.common.seeds import SgdNoise
from harness.config import GemMinerConfig, OptimConfig, Schedule
from harness.distributed.stop import StoppedError
from harness.masks import Mask
from harness.pruning.gem_miner import SCORES, ScoreTraining, draw_scores, kept_counts, num_freezings
from tests.training.small_training import STEPS, Fixed, Memory, network, run

EPOCHS, EVERY, DENSITY, PENALTY, LR = 7, 2, 0.3, 0.001, 1.0
SCORED = ("0.weight", "4.weight")
GEM = GemMinerConfig(score_epochs=EPOCHS, lr=LR, penalty=PENALTY, freeze_every_epochs=EVERY)
NOISE = SgdNoise(1, ("search", 0))


def start():
    """A network whose parameters are scores, the weights, and their training."""
    model = network()
    weights = {name: param.detach().clone() for name, param in model.named_parameters()}
    scores = draw_scores({name: weights[name].shape for name in SCORED}, init_seed=5)
    for name, param in model.named_parameters():
        if name in scores:
            param.data.copy_(scores[name])
        else:
            param.requires_grad_(False)
    return model, weights, ScoreTraining(weights, SCORED, DENSITY, EPOCHS, EVERY)


def trained(world, **options):
    model, weights, scoring = start()
    optim, schedule = GEM.scoring()
    settings = {"optim": optim, "schedule": schedule, "hook": scoring, "noise": NOISE}
    settings["mask"] = Mask.dense(weights, SCORED)
    run(model, world, **(settings | {"view": lambda alpha: scoring.view(alpha)} | options))
    return model, scoring


def written_out():
    """p and q after E epochs: SGD on cross-entropy + λ‖p‖², straight through the step, clipped, the lowest frozen."""
    model, weights, _ = start()
    others = {name: weights[name] for name in weights if name not in SCORED}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    p = {name: dict(model.named_parameters())[name].detach().clone() for name in SCORED}
    q = {name: torch.ones_like(score) for name, score in p.items()}
    velocity = {name: torch.zeros_like(score) for name, score in p.items()}
    share = 1 - DENSITY ** (1 / math.floor((EPOCHS - 1) / EVERY))
    model.train()
    for epoch in range(EPOCHS):
        lr = LR * (1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * epoch / EPOCHS)) / 2)
        if epoch and epoch % EVERY == 0:
            live = torch.cat([score[q[name] == 1] for name, score in p.items()]).sort().values
            kept = int((1 - share) * len(live))
            assert live[len(live) - kept] > 0, "no ties among clipped scores, which position would break"
            for name in SCORED:
                q[name] *= (p[name] >= live[len(live) - kept]).float()
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
    return p, q


def test_scores_and_mask_are_those_of_the_written_out_method(world):
    model, scoring = trained(world)
    p, q = written_out()
    before = draw_scores({name: score.shape for name, score in p.items()}, init_seed=5)
    for name in SCORED:
        assert torch.allclose(scoring.scores[name], p[name], atol=1e-4)
        assert torch.equal(scoring.mask.tensors[name], q[name] == 1)
        assert (p[name] - before[name]).abs().mean() > 0.05, "the scores have moved"
        assert (p[name] == 0).any() and (p[name] == 1).any(), "and reached both ends"
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
def test_interrupted_it_ends_with_the_same_bits(world, stop_after):
    whole, expected = trained(world)
    memory = Memory(world, stop_after)
    with pytest.raises(StoppedError):
        trained(world, saver=memory)
    world.stop._signal = None
    resumed, scoring = trained(world, saver=memory)
    assert scoring.mask.equal(expected.mask)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_the_share_frozen_each_time_ends_at_the_density():
    """The authors' ResNet-32: E = 150, every 5 epochs, 2 % of 465,000 weights."""
    assert num_freezings(150, 5) == 29
    counts = kept_counts(465_000, 0.02, 29)
    assert counts[-1] == pytest.approx(0.02 * 465_000, abs=29)
    shares = [1 - after / before for before, after in zip(counts, counts[1:], strict=False)]
    assert shares == pytest.approx([1 - 0.02 ** (1 / 29)] * 28, abs=1e-4)
    with pytest.raises(ValueError, match="train for 6 or more"):
        num_freezings(5, 5)


def test_settings_are_the_authors():
    optim, schedule = GemMinerConfig().scoring()
    assert optim == OptimConfig("sgd", lr=0.1, momentum=0.9, weight_decay=2e-5)  # the gradient of 1e-5 · ‖p‖²
    assert schedule == Schedule(150, "cosine")
    optim, schedule = GemMinerConfig().finetuning()
    assert optim == OptimConfig("sgd", lr=0.01, momentum=0.9, weight_decay=1e-4)
    assert schedule.epochs == 150
    factors = [schedule.lr_factor(epoch) for epoch in (79, 80, 119, 120, 149)]
    assert factors == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])
    assert (GemMinerConfig().freeze_every_epochs, GemMinerConfig().penalty) == (5, 1e-5)
