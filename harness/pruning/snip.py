"""SNIP (Lee et al. 2019): prune at initialisation the connections to which the loss is least sensitive.

Level 0 is θ₀ itself, untrained. Every later level trains θ₀ ⊙ mₜ with the full schedule. The paper prunes once: take
`--one-shot`. Level after level, the sensitivities are those at θ₀ ⊙ mₜ₋₁.
"""

from typing import ClassVar

from harness.config import Schedule, SearchConfig
from harness.pruning.imp import IMP
from harness.pruning.method import LevelContext, NotHereError, Params


class SNIP(IMP):
    """Pruning at initialisation by |θ ⊙ ∂L/∂θ| on one batch of training images."""

    importance_file: ClassVar[str | None] = "importance.safetensors"

    def schedule(self, config: SearchConfig, level: int) -> Schedule:
        """Return the schedule of the final trainings; level 0 is not trained."""
        return super().schedule(config, level) if level else Schedule(0, "constant")

    def importance(self, ctx: LevelContext) -> Params:
        """Return the connection sensitivities of θ₀ ⊙ mₜ₋₁."""
        if ctx.gradients is None:
            raise NotHereError("gradients of a batch")
        params = ctx.theta_init.params
        gradients = ctx.gradients(params, ctx.mask)
        return {name: (params[name] * kept * gradients[name]).abs() for name, kept in ctx.mask.tensors.items()}
