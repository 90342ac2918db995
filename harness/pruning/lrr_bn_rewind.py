"""LRR whose normalisation layers are rewound: level t starts from [φₜ₋₁ ⊙ mₜ, ψ_init], with fresh running statistics.

The other way, beside AWS, to make a ticket that does without its trained ψ: it interpolates nothing.
"""

from __future__ import annotations

from collections.abc import Collection

from harness.pruning.lrr import forward_view
from harness.pruning.method import Params

__all__ = ["forward_view", "start"]


def start(origin: Params, parent: Params, norm: Collection[str]) -> Params:
    """Training at level t starts from [φₜ₋₁, ψ_init] (the mask is applied by the caller)."""
    return dict(parent) | {name: origin[name] for name in norm}
