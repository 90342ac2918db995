"""Implement Find a Winning Sign in plain PyTorch.

It covers AWS, LRR, the final training with the signed mask, and the barrier to ψ_init. This is an independent
implementation of the paper (Oh, Baik & Lee, ICLR 2025), to which `tickets selfcheck` compares the harness. It imports
no module of the harness. Settings, θ_init and random numbers are passed in as numbers and arrays. The network, crops,
SGD, pruning, signs, schedules and BatchNorm are implemented here. Where possible, the computation differs from the
harness. Autograd differentiates αψ + (1−α)ψ_init, and the mask multiplies θ inside the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = dict[str, Tensor]
Stage = dict[str, Tensors]
"""Result of one training or barrier: {quantity: {name: tensor}}.

The quantities are weights, BatchNorm, masks, signs, losses and errors %.
"""
Purpose = tuple[str | int, ...]
Draws = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Random numbers of one epoch: (order_N, top_N, left_N, alphas_S).

order_N is the permutation of the training images. The crop of image order_N[i] begins at row top_N[i] and column
left_N[i] of its padded copy. alphas_S has α for each step.
"""


@dataclass(frozen=True)
class Reference:
    """Data and settings of a search, a barrier and a final training."""

    train: tuple[np.ndarray, np.ndarray]  # images uint8 (N, H, H), labels int64 (N,)
    test: tuple[np.ndarray, np.ndarray]  # the same for the test split
    pixels: tuple[float, float]  # mean and standard deviation of the pixels, scaled to [0, 1]
    padding: int  # black pixels around an image, added before cropping
    draws: Callable[[Purpose, int], Draws]  # random numbers for a purpose and epoch
    sees_alpha: bool  # True for AWS, False for LRR
    num_levels: int
    epochs: tuple[int, int]  # (epochs of the warm-up and of each level, epochs of the final training)
    alphas: tuple[float, ...]  # points of the barrier
    batch_size: int
    sgd: tuple[float, float, float]  # learning rate, momentum, weight decay

    def stages(self, theta_init: Tensors, other_init: Tensors) -> Iterator[tuple[str, Stage]]:
        """Yield (name, stage) of each level, the barrier and the final training.

        Args:
            theta_init: Initial parameters of the search.
            other_init: Initial parameters of the final training with the signed mask.
        """
        # Algorithm 1. Each level continues with θ and BatchNorm's running statistics of the level before.
        psi_init = {name: value for name, value in theta_init.items() if "bn" in name}
        theta, statistics = theta_init, fresh_statistics(theta_init)
        mask = {name: torch.ones_like(value, dtype=torch.bool) for name, value in theta.items() if value.ndim == 4}
        (level_epochs, final_epochs), lr = self.epochs, self.sgd[0]
        rates, seen = level_epochs * [lr], psi_init if self.sees_alpha else {}
        for level in range(self.num_levels + 1):
            mask = prune(theta, mask) if level else mask
            theta, stage = self.trained(theta, mask, statistics, ("search", level), rates, seen)
            yield f"level {level}", stage

        # Barrier on the line between the ticket and its copy with ψ_init.
        line = [theta | {n: alpha * theta[n] + (1 - alpha) * v for n, v in psi_init.items()} for alpha in self.alphas]
        means = [self.reestimated(between, ("comparison", "batchnorm")) for between in line]
        errors = torch.stack([self.measured(*point)[1] for point in zip(line, means, strict=True)])
        yield "barrier", {"errors %": {"by α": errors, "barrier": errors.max() - (errors[0] + errors[-1]) / 2}}

        # Final training 𝒜(abs(θ_init) ⊙ s), with initial ψ and initial statistics.
        start = {name: v if "bn" in name else v.abs() * stage["signs"][name] for name, v in other_init.items()}
        half, late = final_epochs // 2, final_epochs // 4 * 3
        rates = [lr * 0.1 ** ((epoch >= half) + (epoch >= late)) for epoch in range(final_epochs)]
        yield "final", self.trained(start, mask, fresh_statistics(start), ("final",), rates, {})[1]

    def trained(
        self, theta: Tensors, mask: Tensors, statistics: Tensors, purpose: Purpose, rates: list[float], seen: Tensors
    ) -> tuple[Tensors, Stage]:
        """Train with SGD and return (θ, stage).

        Args:
            theta: Initial parameters.
            mask: Mask of the prunable weights.
            statistics: BatchNorm's running statistics, updated in place.
            purpose: Purpose of the random numbers.
            rates: Learning rate of each epoch.
            seen: ψ_init by name for AWS, whose forward pass uses αψ + (1−α)ψ_init. Empty for plain training.
        """
        # Phase: training
        _, momentum, weight_decay = self.sgd
        theta = {name: (v * mask.get(name, 1)).requires_grad_() for name, v in theta.items()}
        velocity, steps = {name: torch.zeros_like(v) for name, v in theta.items()}, []
        for epoch, lr in enumerate(rates):
            for alpha, images, labels in self.batches(purpose, epoch):
                used = theta | {name: theta[name] * kept for name, kept in mask.items()}
                used |= {name: alpha * theta[name] + (1 - alpha) * first for name, first in seen.items()}
                logits = resnet8(used, statistics, images, 0.1)
                loss = F.cross_entropy(logits, labels)
                gradients = torch.autograd.grad(loss, list(theta.values()))
                with torch.no_grad():
                    for (name, value), gradient in zip(theta.items(), gradients, strict=True):
                        velocity[name] = momentum * velocity[name] + gradient + weight_decay * value
                        value -= lr * velocity[name]
                steps.append([loss.item(), error_percent(logits, labels).item()])

        # Phase: evaluation. Running statistics of AWS belong to random α, so levels are also evaluated with new ones.
        theta = {name: value.detach() for name, value in theta.items()}
        losses, errors = torch.tensor(steps).view(len(rates), -1, 2).mean(1).T
        own_error = self.measured(theta, statistics)[1]
        used_statistics = self.reestimated(theta, ("batchnorm",)) if purpose[0] == "search" else statistics
        loss, error = self.measured(theta, used_statistics)
        return theta, {
            "weights": theta,
            "BatchNorm": {name: value.clone() for name, value in statistics.items()},
            "masks": mask,
            "signs": {name: (value * mask.get(name, 1)).sign() for name, value in theta.items()},
            "losses": {"train": losses, "test": loss},
            "errors %": {"train": errors, "test": error, "test, own statistics": own_error},
        }

    def batches(self, purpose: Purpose, epoch: int) -> Iterator[tuple[float, Tensor, Tensor]]:
        """Yield (α, randomly cropped images, labels) of each step of an epoch.

        A partial batch at the end is dropped.
        """
        (images, labels), (order_N, top_N, left_N, alphas_S) = self.train, self.draws(purpose, epoch)
        padded, side = np.pad(images, ((0, 0), *2 * [(self.padding, self.padding)])), images.shape[1]
        crops = [padded[i, y : y + side, x : x + side] for i, y, x in zip(order_N, top_N, left_N, strict=True)]
        begins = range(0, len(images) - self.batch_size + 1, self.batch_size)
        for alpha, begin in zip(alphas_S, begins, strict=True):
            rows = slice(begin, begin + self.batch_size)
            yield alpha, self.normalised(np.stack(crops[rows])), torch.from_numpy(labels[order_N[rows]])

    def normalised(self, images: np.ndarray) -> Tensor:
        """Return (pixels/255 − mean) / std, NCHW, in torch's default dtype."""
        mean, std = self.pixels
        return ((torch.from_numpy(images).to(torch.get_default_dtype()) / 255 - mean) / std)[:, None]

    @torch.no_grad()
    def reestimated(self, theta: Tensors, purpose: Purpose) -> Tensors:
        """Return new BatchNorm statistics: unweighted means over one epoch's batches."""
        statistics = fresh_statistics(theta)
        for count, (_, images, _) in enumerate(self.batches(purpose, 0), start=1):
            resnet8(theta, statistics, images, 1 / count)
        return statistics

    @torch.no_grad()
    def measured(self, theta: Tensors, statistics: Tensors) -> tuple[Tensor, Tensor]:
        """Return (loss, top-1 error in percent) on the test images."""
        logits, labels = resnet8(theta, statistics, self.normalised(self.test[0])), torch.from_numpy(self.test[1])
        return F.cross_entropy(logits, labels), error_percent(logits, labels)


def error_percent(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the top-1 error in percent."""
    return 100 * (logits.argmax(1) != labels).to(logits.dtype).mean()


def prune(theta: Tensors, mask: Tensors) -> Tensors:
    """Keep the ⌊0.8 · live⌋ unpruned weights of largest magnitude.

    All layers are ranked together.
    """
    live = torch.cat([theta[name][kept].abs() for name, kept in mask.items()]).sort(descending=True).values
    return {name: kept & (theta[name].abs() >= live[int(0.8 * len(live)) - 1]) for name, kept in mask.items()}


def fresh_statistics(theta: Tensors) -> Tensors:
    """Return BatchNorm's initial running statistics: mean 0, variance 1, no batches."""
    scales = {name.removesuffix("weight"): v for name, v in theta.items() if "bn" in name and name.endswith("weight")}
    fresh = {f"{layer}running_mean": torch.zeros_like(v) for layer, v in scales.items()}
    fresh |= {f"{layer}running_var": torch.ones_like(v) for layer, v in scales.items()}
    return fresh | {f"{layer}num_batches_tracked": torch.tensor(0) for layer in scales}


def resnet8(theta: Tensors, statistics: Tensors, images_NCHW: Tensor, momentum: float | None = None) -> Tensor:
    """Return the logits of ResNet-8 with option-A shortcuts (He et al. 2016, section 4.2).

    With `momentum`, BatchNorm normalises by batch statistics and updates the running statistics in place. Without it,
    BatchNorm normalises by the running statistics.
    """

    # Layers
    def bn(name: str, x: Tensor) -> Tensor:
        mean, var = running = statistics[f"{name}.running_mean"], statistics[f"{name}.running_var"]
        if momentum is not None:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
            for old, new in zip(running, (mean, x.var((0, 2, 3))), strict=True):
                old.copy_((1 - momentum) * old + momentum * new.detach())
            statistics[f"{name}.num_batches_tracked"] += 1
        scale, shift = theta[f"{name}.weight"] / (var + 1e-5).sqrt(), theta[f"{name}.bias"]
        return (x - mean[:, None, None]) * scale[:, None, None] + shift[:, None, None]

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        return F.conv2d(x, theta[f"{name}.weight"], stride=stride, padding=1)

    # Stem, three residual blocks, classifier
    x = bn("bn1", conv("conv1", images_NCHW)).relu()
    for block, stride in (("layer1.0", 1), ("layer2.0", 2), ("layer3.0", 2)):
        y = bn(f"{block}.bn1", conv(f"{block}.conv1", x, stride)).relu()
        y = bn(f"{block}.bn2", conv(f"{block}.conv2", y))
        more = y.shape[1] - x.shape[1]
        x = (y + F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, more // 2, more - more // 2))).relu()
    return x.mean((2, 3)) @ theta["fc.weight"].T + theta["fc.bias"]
