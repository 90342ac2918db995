"""Learning rate rewinding (Renda et al. 2020): keep the trained weights and restart the learning-rate schedule."""

from harness.common.seeds import SgdNoise
from harness.config import Schedule, SearchConfig
from harness.pruning.method import LevelContext, Method, Params, StartPoint


class LRR(Method):
    """The paper's LRR: short levels at a constant learning rate (section 4.1)."""

    def schedule(self, config: SearchConfig, level: int) -> Schedule:
        """Return a constant schedule of `warmup_epochs` (level 0) or `level_epochs` (later levels)."""
        return Schedule(config.level_epochs if level else config.warmup_epochs, "constant")

    def importance(self, ctx: LevelContext) -> Params:
        """Return |θₜ₋₁|."""
        return {name: ctx.parent.params[name].abs() for name in ctx.mask.tensors}

    def start(self, ctx: LevelContext) -> StartPoint:
        """Return θₜ₋₁ ⊙ mₜ."""
        return StartPoint.masked(ctx.parent.params, ctx.parent.buffers, ctx.mask, epochs=ctx.parent.epochs)

    def noise(self, config: SearchConfig, level: int, *, again: bool = False) -> SgdNoise:
        """Return a separate u for each level. Only AWS uses its α."""
        return SgdNoise(config.sgd_seed, ("search", level, "again") if again else ("search", level), config.alpha)
