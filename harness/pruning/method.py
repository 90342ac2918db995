"""What a pruning method is: where a level's training starts, and what its forward pass sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

Params = Mapping[str, torch.Tensor]
ForwardView = Callable[[float], AbstractContextManager[None]]
"""Of α, a context that covers forward and backward of one optimizer step."""


@dataclass(frozen=True)
class NormState:
    """ψ of the network in training and ψ_init, its values in θ_init, in the same order."""

    params: list[torch.Tensor]
    initial: list[torch.Tensor]


@dataclass(frozen=True)
class PruningMethod:
    """One way to find a mask.

    `start(θ₀, θₜ₋₁)` gives the parameters that level t trains from, before the mask; `forward_view(ψ, ψ_init)` the
    view of each step, which `sees_alpha` or not.
    """

    start: Callable[[Params, Params], Params]
    forward_view: Callable[[NormState], ForwardView]
    sees_alpha: bool = False
