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
from harness.pruning.method import ForwardView, NormState, plain_view


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
        # Phase: put ψ_init into one tensor, so that each step interpolates with one call. Both buffers have views of ψ.
        params = norm.params
        if not params:
            return plain_view
        initial = torch.cat([tensor.flatten() for tensor in norm.initial])
        saved, mixed = torch.empty_like(initial), torch.empty_like(initial)
        sizes = [param.numel() for param in params]
        saved_views, mixed_views = (
            [part.view_as(param) for part, param in zip(flat.split(sizes), params, strict=True)]
            for flat in (saved, mixed)
        )

        @contextmanager
        def at(alpha: float) -> Iterator[None]:
            # Phase: replace ψ. lerp is exact at both ends, so AWS with α = 1 has the same bits as LRR.
            with torch.no_grad():
                torch._foreach_copy_(saved_views, params)
                torch.lerp(initial, saved, alpha, out=mixed)
                torch._foreach_copy_(params, mixed_views)
            try:
                yield
            finally:
                with torch.no_grad():
                    torch._foreach_copy_(params, saved_views)
            # Phase: apply the chain rule to the gradients of ψ.
            grads = [param.grad for param in params if param.grad is not None]
            if grads:
                # On the CPU, torch would wrap a number once for each gradient: four times as long.
                on_cpu = grads[0].device.type == "cpu"
                torch._foreach_mul_(grads, torch.tensor(alpha, dtype=grads[0].dtype) if on_cpu else alpha)

        return at
