"""AWS (paper, section 3.3): LRR that trains with interpolated normalisation parameters.

Only lines 3 and 4 of Algorithm 1 differ from LRR. For one optimizer step, αψ + (1−α)ψ_init replaces the values of ψ.
After the backward pass, ψ is restored and its gradients are multiplied by α (chain rule). No forward method is patched
and no state is added, so AWS works under DDP and torch.compile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from harness.pruning.lrr import LRR
from harness.pruning.method import ForwardView, NormState


class AWS(LRR):
    """LRR whose forward pass uses [φ, αψ + (1−α)ψ_init] instead of θ = [φ, ψ].

    As in LRR, level t starts from θₜ₋₁ ⊙ mₜ, and mₜ keeps the weights with the largest |θₜ₋₁|.
    """

    metrics = ("alpha_mean",)
    heeds = (*LRR.heeds, "alpha")

    def view(self, norm: NormState) -> ForwardView:
        """Return `view(α)`: a context manager that interpolates ψ during one optimizer step.

        The context must cover the forward and backward passes of all micro-batches of the step.
        """
        params, initial = norm.params, norm.initial
        saved = [torch.empty_like(param) for param in params]

        @contextmanager
        def at(alpha: float) -> Iterator[None]:
            if not params:
                yield
                return
            # Phase: replace ψ. lerp is exact at both ends, so AWS with α = 1 has the same bits as LRR.
            with torch.no_grad():
                torch._foreach_copy_(saved, params)
                torch._foreach_copy_(params, torch._foreach_lerp(initial, saved, alpha))
            try:
                yield
            finally:
                with torch.no_grad():
                    torch._foreach_copy_(params, saved)
            # Phase: apply the chain rule to the gradients of ψ.
            grads = [param.grad for param in params if param.grad is not None]
            if grads:
                torch._foreach_mul_(grads, alpha)

        return at
