"""Iterative magnitude pruning (Frankle & Carbin 2019): every level trains θ₀ ⊙ mₜ with the full schedule.

The data order is rewound together with the parameters: all levels share one u (method, section 3).
"""

from harness.common.seeds import SgdNoise
from harness.config import SearchConfig
from harness.pruning.lrr_full import FullLRR
from harness.pruning.method import LevelContext, StartPoint


class IMP(FullLRR):
    """Iterative magnitude pruning, with the parameters rewound to θ₀ before every level."""

    drawn_arrow = "rewound-to"

    def start(self, ctx: LevelContext) -> StartPoint:
        """Return θ₀ ⊙ mₜ."""
        return StartPoint.masked(ctx.theta_init.params, ctx.theta_init.buffers, ctx.mask, epochs=ctx.parent.epochs)

    def noise(self, config: SearchConfig, level: int, *, again: bool = False) -> SgdNoise:
        """Return the u of level 0 for every level."""
        return SgdNoise(config.sgd_seed, ("search",))
