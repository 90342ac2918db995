"""Test how many kernels an optimizer step launches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from harness.common.seeds import SgdNoise
from harness.config import GemMinerConfig, Schedule
from harness.masks import Mask
from harness.models import classifier_of, partition_of
from harness.pruning.gem_miner import ScoreTraining, draw_scores
from harness.pruning.method import plain_view
from harness.training import loop
from harness.training.loop import train
from tests.gpu.gpu_steps import Repeated, fresh, take_steps
from tests.simulated_cuda.label import DEVICE, Record
from tests.training.small_training import open_world

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def no_meeting_in_the_second_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow machine, the ranks would meet after each step."""
    monkeypatch.setattr(loop, "MEETING_SECONDS", 3600.0)


class Counted(Repeated):
    """Batches that store the kernel counts at each request."""

    def __init__(self, record: Record) -> None:
        super().__init__(3, 2, 32, DEVICE)
        self.record, self.at = record, []

    def epoch(self, noise: SgdNoise, epoch: int, skip_steps: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in super().epoch(noise, epoch, skip_steps):
            self.at.append(Counter(self.record.kernels))
            yield batch


def step(record: Record, method: str) -> Counter[str]:
    """Return the kernels of the second step.

    The first step also creates the optimizer's state.
    """
    batches = Counted(record)
    for world in open_world("no"):
        take_steps(world, "resnet50", method=method, batches=batches)
    return batches.at[2] - batches.at[1]


def test_aws_launches_at_most_five_kernels_more_than_lrr_on_resnet50(cuda):
    """Compare the kernels of a step of AWS and LRR.

    AWS saves, interpolates, sets and restores ψ, and scales its gradients.
    """
    aws, lrr = step(cuda, "aws"), step(cuda, "lrr")
    assert lrr.total() > 400, lrr
    assert 0 < (aws - lrr).total() <= 5, aws - lrr
    assert not lrr - aws, lrr - aws


def score_step(record: Record, hook: bool) -> Counter[str]:
    """Return the kernels of the second step of ResNet-50, with frozen biases and ψ.

    Args:
        record: The record of the simulated device.
        hook: Whether the step trains Gem-Miner's scores, or the weights themselves.
    """
    # Phase: network, and scores of all prunable weights and of the classifier
    model, batches = fresh("resnet50", 32, DEVICE), Counted(record)
    weights = {name: param.detach().cpu() for name, param in model.named_parameters()}
    scored = sorted(partition_of("resnet50", model).prunable | {f"{classifier_of('resnet50')}.weight"})
    mask = Mask.dense(weights, scored)
    scores = draw_scores(mask.shapes(), 1) if hook else {}
    for name, param in model.named_parameters():
        param.requires_grad_(name in scored)
        if name in scores:
            param.data.copy_(scores[name].to(DEVICE))

    # Phase: train
    gem = GemMinerConfig(score_epochs=2, freeze_every_epochs=1)
    scoring = ScoreTraining(weights, scored, 0.5, gem) if hook else None
    for world in open_world("no"):
        train(
            model,
            world=world,
            batches=batches,
            noise=SgdNoise(1, ("search", 1)),
            optim=gem.scoring()[0],
            schedule=Schedule(1, "constant"),
            mask=mask,
            view=scoring.view if scoring else plain_view,
            label="test",
            on_epoch=lambda report: None,
            hook=scoring,
        )
    return batches.at[2] - batches.at[1]


def test_gem_miner_launches_at_most_twenty_kernels_more_than_a_plain_step_on_resnet50(cuda):
    """Gem-Miner saves scores, sets and restores effective weights, scales gradients and clips scores."""
    gem_miner, plain = score_step(cuda, True), score_step(cuda, False)
    assert plain.total() > 400, plain
    assert 0 < (gem_miner - plain).total() <= 20, gem_miner - plain
    assert not plain - gem_miner, plain - gem_miner
