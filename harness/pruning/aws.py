"""AWS (paper, section 3.3): LRR whose forward pass sees normalisation parameters between ψ_init and ψ.

Only lines 3 and 4 of Algorithm 1 differ from LRR. For one optimizer step the values of ψ are swapped for
αψ + (1−α)ψ_init. After backward they are restored, and their gradients are scaled by α (chain rule). No forward method
is patched and no state is added, so it works under DDP and torch.compile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from harness.pruning.lrr import LRR
from harness.pruning.method import ForwardView, NormState


class AWS(LRR):
    """LRR whose steps see [φ, αψ + (1−α)ψ_init].

    As in LRR, level t starts from θₜ₋₁ ⊙ mₜ, and mₜ keeps the largest |θₜ₋₁|.
    """

    metrics = ("alpha_mean",)
    heeds = (*LRR.heeds, "alpha")

    def view(self, norm: NormState) -> ForwardView:
        """Return the view of one optimizer step, all its micro-batches included."""
        params, initial = norm.params, norm.initial
        saved = [torch.empty_like(param) for param in params]

        @contextmanager
        def at(alpha: float) -> Iterator[None]:
            if not params:
                yield
                return
            with torch.no_grad():
                torch._foreach_copy_(saved, params)
                # lerp is exact at both ends: α = 1 leaves ψ bit for bit, and AWS is then LRR
                torch._foreach_copy_(params, torch._foreach_lerp(initial, saved, alpha))
            try:
                yield
            finally:
                with torch.no_grad():
                    torch._foreach_copy_(params, saved)
            grads = [param.grad for param in params if param.grad is not None]
            if grads:
                torch._foreach_mul_(grads, alpha)

        return at
