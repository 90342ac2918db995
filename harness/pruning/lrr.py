"""Learning rate rewinding (Renda et al., 2020): weights go on from θₜ₋₁, only the learning rate starts again."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext

from harness.pruning.method import ForwardView, NormState, Params


def start(origin: Params, parent: Params, norm: Collection[str]) -> Params:
    """Training at level t starts from θₜ₋₁ (the mask is applied by the caller)."""
    return parent


def forward_view(norm: NormState) -> ForwardView:
    """The forward pass sees θ itself."""

    def at(alpha: float) -> AbstractContextManager[None]:
        return nullcontext()

    return at
