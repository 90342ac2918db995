"""Gradients of the loss at given weights, for methods that rank weights by them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from harness.common.seeds import SgdNoise
from harness.masks import Mask

if TYPE_CHECKING:
    from harness.experiment.experiment import Experiment


def batch_gradients(experiment: Experiment, params: Mapping[str, torch.Tensor], mask: Mask) -> dict[str, torch.Tensor]:
    """Return the gradients of the mean loss of one global batch at θ ⊙ m.

    The batch is the first one of the sgd_seed's stream "ranking", augmented as in training. Computed in float32;
    BatchNorm uses the statistics of the batch, of this rank's share on several ranks.

    Args:
        experiment: Network, data and processes; all ranks call this.
        params: θ, all parameters by name.
        mask: m; gradients of pruned weights are those at weight 0.

    Returns:
        A float32 tensor for each parameter, on the CPU, the mean over ranks.
    """
    world = experiment.world
    model = deepcopy(experiment.blank).train()
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in params.items():
            own[name].copy_(tensor)
        mask.to(world.device).apply_({name: own[name] for name in mask.tensors})
    noise = SgdNoise(experiment.config.sgd_seed, ("ranking",))
    images_NCHW, labels_N = next(experiment.train_feed.epoch(noise, 0, num_steps=1))
    torch.manual_seed(noise.key("dropout", 0) >> 1)
    F.cross_entropy(model(images_NCHW).float(), labels_N).backward()
    grads = {name: torch.zeros_like(param) if param.grad is None else param.grad for name, param in own.items()}
    return {name: (world.sum(grad) / world.size).cpu() for name, grad in grads.items()}
