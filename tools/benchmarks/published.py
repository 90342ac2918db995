"""A training step as the published scripts take it, written anew: what ours is measured against on a GPU.

Float32 (cuDNN takes TF32 for it by default), contiguous images, `w * m` in the forward pass of every layer, an α for
each normalisation layer, and the loss and the number of correct predictions fetched from the device at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def masked(layer: Any, mask: Tensor, input: Tensor) -> Tensor:
    """Convolve with, or multiply by, w * m."""
    weight = layer.weight * mask
    convolves = isinstance(layer, nn.Conv2d)
    return layer._conv_forward(input, weight, layer.bias) if convolves else F.linear(input, weight, layer.bias)


def blended(norm: Any, draw: Callable[[], float], initial: tuple[Tensor, Tensor], input: Tensor) -> Tensor:
    """Normalise with αψ + (1−α)ψ_init."""
    alpha = draw()
    weight = alpha * norm.weight + (1 - alpha) * initial[0]
    bias = alpha * norm.bias + (1 - alpha) * initial[1]
    norm.num_batches_tracked.add_(1)
    statistics = norm.running_mean, norm.running_var
    return F.batch_norm(input, *statistics, weight, bias, norm.training, norm.momentum, norm.eps)


class PublishedStep:
    """Forward, backward and update of `model`, whose layers see `masks` and whose norms see `initial` and drawn α."""

    def __init__(
        self, model: nn.Module, masks: Mapping[str, Tensor], initial: Mapping[str, Tensor], draw: Callable[[], float]
    ) -> None:
        self.model, self.loss_sum, self.num_correct = model.train(), 0.0, 0
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                module.forward = partial(blended, module, draw, (initial[f"{name}.weight"], initial[f"{name}.bias"]))  # type: ignore[method-assign]
            elif f"{name}.weight" in masks:
                module.forward = partial(masked, module, masks[f"{name}.weight"].float())
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def __call__(self, images_NCHW: Tensor, labels_N: Tensor) -> None:
        """Take one step."""
        logits_NK = self.model(images_NCHW.contiguous())
        loss = F.cross_entropy(logits_NK, labels_N)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.loss_sum += loss.item()
        self.num_correct += int((logits_NK.argmax(1) == labels_N).sum().item())
