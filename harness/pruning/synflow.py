"""SynFlow (Tanaka et al. 2020): prune at initialisation, without data, by the flow of |θ₀| through the network.

The mask is made in 100 rounds of falling density, so that no layer collapses. The paper prunes once: take `--one-shot`.
"""

import torch
from torch.func import functional_call

from harness.config import SearchConfig
from harness.pruning.magnitude import PruningSchedule, keep_largest
from harness.pruning.method import LevelContext, NotHereError, Params
from harness.pruning.snip import SNIP

ROUNDS = 100


class SynFlow(SNIP):
    """Pruning at initialisation by |θ ⊙ ∂R/∂θ|, R the sum of the outputs of |θ| for an image of ones."""

    importance_file = None  # `verify` computes it again

    def check(self, config: SearchConfig) -> None:
        """Refuse pruning layer by layer: the flow is compared over all layers."""
        if config.pruning_scope != "global":
            raise ValueError("synflow compares weights over all layers: leave out pruning_scope")
        super().check(config)

    def importance(self, ctx: LevelContext) -> Params:
        """Return the synaptic flow in the last round; weights that an earlier one pruned come last."""
        if ctx.new_model is None:
            raise NotHereError("the network's architecture")
        model, image_1CHW = ctx.new_model().double().eval(), torch.ones(1, *ctx.image_shape, dtype=torch.float64)
        positive = {name: tensor.double().abs() for name, tensor in ctx.theta_init.state_dict.items()}
        mask, live, flow = ctx.mask, ctx.mask.num_remaining, dict[str, torch.Tensor]()
        kept_share = sum(PruningSchedule.of(ctx.config).counts(ctx.level, mask).values()) / live
        for number in range(ROUNDS):
            mask = keep_largest(flow, mask, int(live * kept_share ** (number / ROUNDS))) if number else mask
            weights = {name: (positive[name] * kept).requires_grad_() for name, kept in mask.tensors.items()}
            total = functional_call(model, positive | weights, (image_1CHW,)).sum()
            gradients = torch.autograd.grad(total, list(weights.values()))
            flow = {name: (positive[name] * g).abs() for name, g in zip(weights, gradients, strict=True)}
            flow = {name: values.masked_fill(~mask.tensors[name], -1.0) for name, values in flow.items()}
        return flow
