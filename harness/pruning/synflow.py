"""SynFlow (Tanaka et al. 2020): prune at initialisation, without data, by the synaptic flow of |θ₀|.

The mask is computed in 100 rounds of falling density, so that no layer collapses. SynFlow's authors prune once, which
`--one-shot` reproduces.
"""

import torch
from torch.func import functional_call

from harness.config import SearchConfig
from harness.pruning.magnitude import PruningSchedule, keep_largest
from harness.pruning.method import ARCHITECTURE, LevelContext, NotHereError, Params
from harness.pruning.snip import SNIP

ROUNDS = 100


class SynFlow(SNIP):
    """Prune at initialisation by |θ ⊙ ∂R/∂θ|.

    R is the sum of the outputs of the network with weights |θ| for an image of ones.
    """

    importance_file = None  # `verify` recomputes the importance, since it needs no data

    def check(self, config: SearchConfig) -> None:
        """Raise ValueError for contradictory options, and for pruning layer by layer."""
        if config.pruning_scope != "global":
            raise ValueError("synflow ranks the weights of all layers together: remove pruning_scope")
        super().check(config)

    def importance(self, ctx: LevelContext) -> Params:
        """Return the synaptic flow of the last round. Weights pruned in an earlier round get −1.

        Raises:
            NotHereError: The network's architecture is unknown.
        """
        if ctx.new_model is None:
            raise NotHereError(ARCHITECTURE)
        # Phase: build the network with weights |θ₀| in float64.
        model, image_1CHW = ctx.new_model().double().eval(), torch.ones(1, *ctx.image_shape, dtype=torch.float64)
        positive = {name: tensor.double().abs() for name, tensor in ctx.theta_init.state_dict.items()}
        mask, live, flow = ctx.mask, ctx.mask.num_remaining, dict[str, torch.Tensor]()
        # Phase: prune in rounds, geometrically from the current count towards the level's count.
        kept_share = sum(PruningSchedule.of(ctx.config).counts(ctx.level, mask).values()) / live
        for number in range(ROUNDS):
            mask = keep_largest(flow, mask, int(live * kept_share ** (number / ROUNDS))) if number else mask
            weights = {name: (positive[name] * kept).requires_grad_() for name, kept in mask.tensors.items()}
            total = functional_call(model, positive | weights, (image_1CHW,)).sum()
            gradients = torch.autograd.grad(total, list(weights.values()))
            flow = {name: (positive[name] * g).abs() for name, g in zip(weights, gradients, strict=True)}
            flow = {name: values.masked_fill(~mask.tensors[name], -1.0) for name, values in flow.items()}
        return flow
