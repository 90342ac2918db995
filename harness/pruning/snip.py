"""SNIP (Lee et al. 2019): prune, at initialisation, the connections to which the loss is least sensitive.

Level 0 is the untrained θ₀. Every later level trains θ₀ ⊙ mₜ with the full schedule. SNIP's authors prune once, which
`--one-shot` reproduces. Without it, each level computes the sensitivities at θ₀ ⊙ mₜ₋₁.
"""

from typing import ClassVar

from harness.config import Schedule, SearchConfig
from harness.pruning.imp import IMP
from harness.pruning.method import LevelContext, NotHereError, Params


class SNIP(IMP):
    """Prune at initialisation by |θ ⊙ ∂L/∂θ| on one batch of training images."""

    importance_file: ClassVar[str | None] = "importance.safetensors"

    def schedule(self, config: SearchConfig, level: int) -> Schedule:
        """Return the schedule of the final trainings, with 0 epochs for level 0."""
        return super().schedule(config, level) if level else Schedule(0, "constant")

    def importance(self, ctx: LevelContext) -> Params:
        """Return the connection sensitivities |θ ⊙ ∂L/∂θ| at θ = θ₀ ⊙ mₜ₋₁.

        Raises:
            NotHereError: No training data are open.
        """
        if ctx.gradients is None:
            raise NotHereError("gradients of a batch")
        params = ctx.theta_init.params
        gradients = ctx.gradients(params, ctx.mask)
        return {name: (params[name] * kept * gradients[name]).abs() for name, kept in ctx.mask.tensors.items()}
