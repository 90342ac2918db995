"""The initial weights of the networks written here: Kaiming normal (He et al. 2015)."""

from __future__ import annotations

from torch import nn


def kaiming_normal_(model: nn.Module) -> None:
    """Draw the weights of convolutions and linear layers from N(0, 2/fan_in); biases and norms keep torch's defaults.

    fan_in counts the channels of one group, so a depthwise 3×3 convolution has 9.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
