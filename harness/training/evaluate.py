"""Exact evaluation: every test image is counted exactly once over all ranks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from harness.distributed.ranks import joined_over_ranks
from harness.distributed.world import World


@dataclass(frozen=True)
class Evaluation:
    """Results of one pass over a whole split, summed over ranks."""

    num_correct: int
    num_images: int
    loss: float
    """Mean cross-entropy."""
    error_percent: float
    """Top-1 error."""
    correct_N: torch.Tensor = field(compare=False, repr=False)
    """Whether each image was classified correctly: bool on the CPU, in the order of the data set, on every rank."""


@torch.inference_mode()
def evaluate(
    model: torch.nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], world: World, *, num_images: int
) -> Evaluation:
    """Evaluate `model` on this rank's batches and sum the results over ranks.

    Args:
        batches: This rank's (images_NCHW, labels_N). Each rank has a contiguous part of the split, in order of ranks
            (`harness.data.loaders.eval_share`).
        num_images: The size of the whole split.

    Raises:
        RuntimeError: The ranks saw more or fewer images than `num_images`.
    """
    # Phase: run the model on this rank's images.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    loss_sum, correct = torch.zeros(1, dtype=torch.float64, device=world.device), []
    for images_NCHW, labels_N in batches:
        with world.autocast():
            logits_NK = model(images_NCHW).to(torch.get_default_dtype())  # float32 under mixed precision, too
        correct.append(logits_NK.argmax(1) == labels_N)
        loss_sum += F.cross_entropy(logits_NK, labels_N, reduction="sum").double()
    for module, was_training in modes:
        module.training = was_training

    # Phase: sum over ranks. Loss and answers share one tensor, so that the host synchronises with the device once.
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


@torch.no_grad()
def error_so_far(
    model: torch.nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], world: World, *, num_images: int
) -> float:
    """Evaluate `model` between two steps of its training, and leave it as it was.

    Every rank uses the buffers of rank 0, as the checkpoint does. So a resumed training finds the same errors.

    Args:
        model: The network in training.
        batches: This rank's batches, as for `evaluate`.
        num_images: The size of the whole split.

    Returns:
        Top-1 error in percent, on every rank.
    """
    own = {name: buffer.clone() for name, buffer in model.named_buffers()}
    shared = world.share(own)
    for name, buffer in model.named_buffers():
        buffer.copy_(shared[name])
    found = evaluate(model, batches, world, num_images=num_images)
    for name, buffer in model.named_buffers():
        buffer.copy_(own[name])
    return found.error_percent
