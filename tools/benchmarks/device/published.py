"""The published scripts' way of a training step, written anew: what the harness is measured against on a GPU.

Float32 (cuDNN takes TF32 for it by default), contiguous images, `w * m` in the forward pass of every layer, an α for
each normalisation layer, and the loss and the number of correct predictions fetched from the device at every step.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskedConv2d(nn.Conv2d):
    """A convolution that sees w * m."""

    mask: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Multiply, then convolve."""
        return self._conv_forward(input, self.weight * self.mask, self.bias)


class MaskedLinear(nn.Linear):
    """A linear layer that sees w * m."""

    mask: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Multiply, then apply."""
        return F.linear(input, self.weight * self.mask, self.bias)


class BlendedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that sees αψ + (1−α)ψ_init."""

    alpha: float
    weight_init: Tensor
    bias_init: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Interpolate, then normalise as usual."""
        weight = self.alpha * self.weight + (1 - self.alpha) * self.weight_init
        bias = self.alpha * self.bias + (1 - self.alpha) * self.bias_init
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked.add_(1)
        return F.batch_norm(
            input, self.running_mean, self.running_var, weight, bias, self.training, self.momentum, self.eps
        )


def convert_(model: nn.Module, masks: Mapping[str, Tensor], initial: Mapping[str, Tensor]) -> nn.Module:
    """Give masked and BatchNorm layers of `model` the classes above; masks become float buffers, ψ_init too."""
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = BlendedBatchNorm2d
            module.alpha = 1.0  # type: ignore[assignment]
            for kind in ("weight", "bias"):
                module.register_buffer(f"{kind}_init", initial[f"{name}.{kind}"].clone())
        elif f"{name}.weight" in masks:
            module.__class__ = MaskedConv2d if isinstance(module, nn.Conv2d) else MaskedLinear
            module.register_buffer("mask", masks[f"{name}.weight"].float())
    return model


class PublishedStep:
    """Forward, backward and update of a converted network."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, draw: random.Random) -> None:
        self.model, self.optimizer, self.draw = model.train(), optimizer, draw
        self.norms = [module for module in model.modules() if isinstance(module, BlendedBatchNorm2d)]
        self.loss_sum, self.num_correct = 0.0, 0

    def __call__(self, images_NCHW: Tensor, labels_N: Tensor) -> None:
        """Take one step."""
        for norm in self.norms:
            norm.alpha = self.draw.random()
        logits_NK = self.model(images_NCHW)
        loss = F.cross_entropy(logits_NK, labels_N)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.loss_sum += loss.item()
        self.num_correct += int((logits_NK.argmax(1) == labels_N).sum().item())
