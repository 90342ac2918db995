"""LRR that rewinds the normalisation layers: level t starts from [φₜ₋₁ ⊙ mₜ, ψ_init] with fresh running statistics.

Like AWS, it aims at a ticket that does not need its trained ψ. Unlike AWS, it does not interpolate.
"""

from harness.pruning.lrr import LRR
from harness.pruning.method import LevelContext, StartPoint


class RewoundNormLRR(LRR):
    """LRR that resets ψ to ψ_init at the start of every level."""

    drawn_arrow = "norm-rewound-to"

    def start(self, ctx: LevelContext) -> StartPoint:
        """Return [φₜ₋₁, ψ_init] ⊙ mₜ and the buffers of θ_init."""
        params = ctx.parent.params | {name: ctx.theta_init.params[name] for name in ctx.norm}
        return StartPoint.masked(params, ctx.theta_init.buffers, ctx.mask, epochs=ctx.parent.epochs)
