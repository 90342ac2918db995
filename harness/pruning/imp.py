"""Iterative magnitude pruning (Frankle & Carbin 2019): every level trains θ₀ ⊙ mₜ with the full schedule.

The data order is rewound with the parameters: u is the same at every level (method, section 3).
"""

from __future__ import annotations

from collections.abc import Collection

from harness.pruning.lrr import forward_view
from harness.pruning.method import Params

__all__ = ["forward_view", "start"]


def start(origin: Params, parent: Params, norm: Collection[str]) -> Params:
    """Training at level t starts from θ₀, the initial parameters (the mask is applied by the caller)."""
    return origin
