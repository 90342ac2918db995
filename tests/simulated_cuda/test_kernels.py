"""Test how many kernels an optimizer step launches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from harness.common.seeds import SgdNoise
from tests.gpu.gpu_steps import Repeated, take_steps
from tests.simulated_cuda.label import DEVICE, Record
from tests.training.small_training import open_world

pytestmark = pytest.mark.long


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
