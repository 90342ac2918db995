"""Random pruning: LRR whose masks have the usual densities, but keep live weights drawn at random.

What a mask found by magnitude is worth is what it has over this one.
"""

from __future__ import annotations

import numpy as np
import torch

from harness.common.seeds import derive_seed
from harness.masks import Mask
from harness.pruning.lrr import forward_view, start
from harness.pruning.method import Params

__all__ = ["forward_view", "ranking", "start"]


def ranking(parent: Params, mask: Mask, sgd_seed: int, level: int) -> Params:
    """Return a number in [0, 1) for every prunable weight, drawn for each (sgd_seed, level, tensor)."""
    values = {}
    for name, kept in mask.tensors.items():
        key = derive_seed(sgd_seed, "search", level, "random_pruning", name)
        drawn = np.random.Generator(np.random.Philox(key=key)).random(tuple(kept.shape), dtype=np.float32)
        values[name] = torch.from_numpy(drawn)
    return values
