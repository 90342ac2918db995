"""Initialise weights: Kaiming and torch defaults, and schemes that replace them.

A scheme sets only weights. Biases, norm parameters and all other values keep the network's own initialisation.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from harness.common.seeds import derive_seed

SCHEMES = ("network", "kaiming_normal", "constant")
"""network: the network's own. kaiming_normal: N(0, 2/fan_in) (He et al. 2015). constant: ±√(2/fan_in) with the signs of
the network's own initialisation (Zhou et al. 2019; Gem-Miner's weights)."""


def kaiming_normal_(model: nn.Module) -> None:
    """Draw weights of Conv2d and Linear layers from N(0, 2/fan_in) (He et al. 2015).

    Biases and norm parameters keep torch's defaults. fan_in counts the channels of one group, so it is 9 for a
    depthwise 3×3 convolution.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)


def torch_default_(model: nn.Module) -> None:
    """Redraw weights and biases of Conv2d and Linear layers with torch's default.

    The distribution is U(−1/√fan_in, 1/√fan_in), with standard deviation 1/√(3·fan_in). fan_in counts the channels of
    one group.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()


@contextmanager
def private_generators(seed: int) -> Iterator[None]:
    """Seed torch, NumPy and Python inside the block, and restore their states after it.

    The harness's own networks draw from torch alone. The network of a user may draw from all three.
    """
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@torch.no_grad()
def initialise_(params: Mapping[str, nn.Parameter], weights: Iterable[str], scheme: str, init_seed: int) -> None:
    """Initialise the tensors named in `weights` by `scheme`, in place.

    Each tensor is drawn from its own random stream. fan_in counts the channels of one group, as in `kaiming_normal_`.
    In `constant`, a weight that is exactly 0 stays 0.

    Args:
        params: Parameters by name.
        weights: Names of the parameters to set.
        scheme: One of SCHEMES.
        init_seed: Seed of the streams.

    Raises:
        ValueError: The scheme is unknown.
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
    """Return √(2/fan_in) for a weight of shape (out, in, …)."""
    return math.sqrt(2 / max(weight[0].numel(), 1))
