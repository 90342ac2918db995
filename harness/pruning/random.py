"""Random pruning: LRR with the usual densities, but with randomly chosen weights.

The difference in accuracy to this baseline is the benefit of choosing weights by magnitude.
"""

import numpy as np
import torch

from harness.common.seeds import derive_seed
from harness.pruning.lrr import LRR
from harness.pruning.method import LevelContext, Params


class RandomPruning(LRR):
    """LRR that ranks weights by random numbers."""

    def importance(self, ctx: LevelContext) -> Params:
        """Return a random number in [0, 1) for every prunable weight, seeded by (sgd_seed, level, tensor name)."""
        values = {}
        for name, kept in ctx.mask.tensors.items():
            key = derive_seed(ctx.config.sgd_seed, "search", ctx.level, "random_pruning", name)
            drawn = np.random.Generator(np.random.Philox(key=key)).random(tuple(kept.shape), dtype=np.float32)
            values[name] = torch.from_numpy(drawn)
        return values
