"""Exact evaluation: every test image counted once over all ranks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from harness.distributed.ranks import joined_over_ranks
from harness.distributed.world import World


@dataclass(frozen=True)
class Evaluation:
    """Counts of one pass over a whole split."""

    num_correct: int
    num_images: int
    loss: float
    error_percent: float
    """Top-1 error."""
    correct_N: torch.Tensor = field(compare=False, repr=False)
    """Which images were right: bool on the CPU, in the order of the data set, on every rank."""


@torch.inference_mode()
def evaluate(
    model: torch.nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], world: World, *, num_images: int
) -> Evaluation:
    """Evaluate on this rank's (images_NCHW, labels_N) batches and add up over ranks.

    A rank's images follow those of the rank before it (`harness.data.loaders.eval_share`). `num_images` is the size of
    the whole split; another count is a RuntimeError, since an image was lost or repeated.
    """
    was_training = model.training
    model.eval()
    loss_sum, correct = torch.zeros(1, dtype=torch.float64, device=world.device), []
    for images_NCHW, labels_N in batches:
        with world.autocast():
            logits_NK = model(images_NCHW).to(torch.get_default_dtype())  # float32 under mixed precision, too
        correct.append(logits_NK.argmax(1) == labels_N)
        loss_sum += F.cross_entropy(logits_NK, labels_N, reduction="sum").double()
    model.train(was_training)
    # one tensor of the loss and of every answer, so that the host waits for the device once
    own = torch.cat([loss_sum, *correct]).cpu()
    sums = torch.stack([own[1:].sum(), own.new_tensor(len(own) - 1), own[0]])
    num_correct, seen, loss = world.sum(sums).tolist()
    if seen != num_images:
        raise RuntimeError(f"evaluation saw {int(seen)} images of {num_images}")
    correct_N = own[1:].bool()
    if world.size > 1:
        correct_N = joined_over_ranks(world, correct_N)
    error_percent = 100.0 * (num_images - int(num_correct)) / num_images
    return Evaluation(int(num_correct), int(seen), loss / seen, error_percent, correct_N)
