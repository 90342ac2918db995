"""Random pruning: LRR whose masks have the usual densities, but keep live weights drawn at random.

A mask found by magnitude is worth the difference to this one.
"""

import numpy as np
import torch

from harness.common.seeds import derive_seed
from harness.pruning.lrr import LRR
from harness.pruning.method import LevelContext, Params


class RandomPruning(LRR):
    """LRR that ranks weights by random numbers."""

    def importance(self, ctx: LevelContext) -> Params:
        """Return a number in [0, 1) for every prunable weight, drawn for each (sgd_seed, level, tensor)."""
        values = {}
        for name, kept in ctx.mask.tensors.items():
            key = derive_seed(ctx.config.sgd_seed, "search", ctx.level, "random_pruning", name)
            drawn = np.random.Generator(np.random.Philox(key=key)).random(tuple(kept.shape), dtype=np.float32)
            values[name] = torch.from_numpy(drawn)
        return values
