"""LRR whose normalisation layers are rewound: level t starts from [φₜ₋₁ ⊙ mₜ, ψ_init], with fresh running statistics.

Beside AWS, it is the other way to make a ticket that does without its trained ψ: it interpolates nothing.
"""

from harness.pruning.lrr import LRR
from harness.pruning.method import LevelContext, StartPoint


class RewoundNormLRR(LRR):
    """LRR that starts each level with ψ_init."""

    drawn_arrow = "norm-rewound-to"

    def start(self, ctx: LevelContext) -> StartPoint:
        """Return [φₜ₋₁, ψ_init] ⊙ mₜ and the buffers of θ_init."""
        params = ctx.parent.params | {name: ctx.theta_init.params[name] for name in ctx.norm}
        return StartPoint.masked(params, ctx.theta_init.buffers, ctx.mask, epochs=ctx.parent.epochs)
