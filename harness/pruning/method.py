"""What a pruning method is: where a level's training starts, what its steps see, and what a mask is chosen by."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from harness.masks import Mask

Params = Mapping[str, torch.Tensor]
ForwardView = Callable[[float], AbstractContextManager[None]]
"""Of α, a context that covers forward and backward of one optimizer step."""
Ranking = Callable[[Params, Mask, int, int], Params]
"""Of θₜ₋₁, mₜ₋₁, sgd_seed and t, the values whose magnitude decides which weights level t keeps."""


@dataclass(frozen=True)
class NormState:
    """ψ of the network in training and ψ_init, its values in θ_init, in the same order."""

    params: list[torch.Tensor]
    initial: list[torch.Tensor]


class Companion(Protocol):
    """What goes along with one training: told of its steps and epochs, and kept in the state it is resumed from."""

    def attach(self, model: torch.nn.Module) -> None:
        """Take the network, at its start, before the first step."""

    def after_step(self, epoch: int, steps: int) -> None:
        """`steps` steps of `epoch` are done, the last one's update and mask included."""

    def after_epoch(self, epoch: int) -> None:
        """All steps of `epoch` are done."""

    def state(self) -> dict[str, torch.Tensor]:
        """Return what it needs to go on, on the CPU; nothing shares memory with the training."""

    def restore_(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `state` returned."""


def magnitudes(parent: Params, mask: Mask, sgd_seed: int, level: int) -> Params:
    """The weights of level t − 1 themselves (Algorithm 1, line 8)."""
    return parent


@dataclass(frozen=True)
class PruningMethod:
    """One way to find a mask.

    `start(θ₀, θₜ₋₁, names of ψ)` gives the parameters that level t trains from, before the mask; `forward_view(ψ,
    ψ_init)` the view of each step, which `sees_alpha` or not.
    """

    start: Callable[[Params, Params, Collection[str]], Params]
    forward_view: Callable[[NormState], ForwardView]
    sees_alpha: bool = False
    training: Literal["short", "full"] = "short"
    """full: every level, level 0 too, is a final training with its decaying schedule."""
    needs_origin: bool = False
    """Whether `start` looks at θ₀; buffers (BatchNorm's running statistics) then start from there too."""
    same_noise: bool = False
    """Whether every level sees the same u: the data order is rewound with the parameters."""
    rewinds_to_k: bool = False
    """Whether θ₀ is θ_k of level 0, and the schedule and u of every later level begin at k."""
    ranking: Ranking | None = magnitudes
    """What the next mask is chosen by; None: nothing is pruned."""
    scores: bool = False
    """Whether one mask is learnt as scores over frozen weights, of the classifier too, instead of level by level."""
