"""Initial weights: Kaiming's for the networks written here, and schemes that replace a network's own.

A scheme sets weights alone; biases, normalisation layers and all else keep the network's own initial values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from harness.common.seeds import derive_seed

SCHEMES = ("network", "kaiming_normal", "constant")
"""network: the network's own; kaiming_normal: N(0, 2/fan_in) (He et al. 2015); constant: ±√(2/fan_in) with the signs of
the network's own draw (Zhou et al. 2019; Gem-Miner's weights)."""


def kaiming_normal_(model: nn.Module) -> None:
    """Draw the weights of convolutions and linear layers from N(0, 2/fan_in) (He et al. 2015).

    Biases and normalisation layers keep torch's defaults. fan_in counts the channels of one group, so a depthwise 3×3
    convolution has 9.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)


def torch_default_(model: nn.Module) -> None:
    """Draw convolutions and linear layers anew as torch draws them: U(−1/√fan_in, 1/√fan_in), their biases too.

    The standard deviation is 1/√(3·fan_in). fan_in counts the channels of one group.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()


@torch.no_grad()
def initialise_(params: Mapping[str, nn.Parameter], weights: Iterable[str], scheme: str, init_seed: int) -> None:
    """Give the tensors named in `weights` the values of `scheme`, in place; each is drawn from its own stream.

    fan_in counts the channels of one group, as in `kaiming_normal_`. A weight that is exactly 0 stays 0 in `constant`.
    """
    for name in sorted(weights):
        if scheme == "constant":
            params[name].copy_(params[name].sign() * kaiming_std(params[name]))
        elif scheme == "kaiming_normal":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(init_seed, "init", scheme, name) >> 1)
                params[name].normal_(0, kaiming_std(params[name]))
        elif scheme != "network":
            raise ValueError(f"unknown initialisation {scheme!r}; known: {', '.join(SCHEMES)}")


def kaiming_std(weight: torch.Tensor) -> float:
    """Return √(2/fan_in) of a weight (out, in, …)."""
    return math.sqrt(2 / max(weight[0].numel(), 1))
