"""Magnitude increase (Zhou et al. 2019, "Deconstructing lottery tickets"): keep the weights that grew the most."""

from harness.pruning.imp import IMP
from harness.pruning.method import LevelContext, Params


class MagnitudeIncrease(IMP):
    """IMP that ranks weights by |θₜ₋₁| − |θ₀|."""

    def importance(self, ctx: LevelContext) -> Params:
        """Return the growth of each weight's magnitude since the initialisation."""
        after, before = ctx.parent.params, ctx.theta_init.params
        return {name: after[name].abs() - before[name].abs() for name in ctx.mask.tensors}
