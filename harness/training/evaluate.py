"""Exact evaluation: every test image counted once over all ranks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from harness.distributed.world import World


@dataclass(frozen=True)
class Evaluation:
    """Counts of one pass over a whole split."""

    num_correct: int
    num_images: int
    loss: float
    error_percent: float
    """Top-1 error."""


@torch.inference_mode()
def evaluate(
    model: torch.nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], world: World, *, num_images: int
) -> Evaluation:
    """Evaluate on this rank's (images_NCHW, labels_N) batches and add up over ranks.

    `num_images` is the size of the whole split; another count is a RuntimeError, since an image was lost or repeated.
    """
    was_training = model.training
    model.eval()
    # one tensor of correct, images and loss, so that the host waits for the device once; whole numbers stay exact
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)
    for images_NCHW, labels_N in batches:
        with world.autocast():
            logits_NK = model(images_NCHW).to(torch.get_default_dtype())  # float32 under mixed precision, too
        sums[0] += (logits_NK.argmax(1) == labels_N).sum()
        sums[1] += len(labels_N)
        sums[2] += F.cross_entropy(logits_NK, labels_N, reduction="sum").double()
    model.train(was_training)
    correct, seen, loss_sum = world.sum(sums).tolist()
    if seen != num_images:
        raise RuntimeError(f"evaluation saw {int(seen)} images of {num_images}")
    return Evaluation(int(correct), int(seen), loss_sum / seen, 100.0 * (num_images - int(correct)) / num_images)
