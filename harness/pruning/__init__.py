"""How a mask is found. A method is one file and one line of METHODS."""

from harness.pruning import aws, dense, gem_miner, imp, lrr, lrr_bn_rewind, lrr_full, random, wr
from harness.pruning.magnitude import prune, prune_to
from harness.pruning.method import Companion, ForwardView, NormState, PruningMethod
from harness.pruning.schedule import Plan

METHODS: dict[str, PruningMethod] = {
    "aws": PruningMethod(aws.start, aws.forward_view, sees_alpha=True),
    "lrr": PruningMethod(lrr.start, lrr.forward_view),
    "lrr_full": PruningMethod(lrr_full.start, lrr_full.forward_view, training="full"),
    "lrr_bn_rewind": PruningMethod(lrr_bn_rewind.start, lrr_bn_rewind.forward_view, needs_origin=True),
    "imp": PruningMethod(imp.start, imp.forward_view, training="full", needs_origin=True, same_noise=True),
    "wr": PruningMethod(
        wr.start, wr.forward_view, training="full", needs_origin=True, same_noise=True, rewinds_to_k=True
    ),
    "random": PruningMethod(random.start, random.forward_view, ranking=random.ranking),
    "dense": PruningMethod(dense.start, dense.forward_view, ranking=None),
    "gem_miner": PruningMethod(gem_miner.start, gem_miner.forward_view, needs_origin=True, ranking=None, scores=True),
}

__all__ = ["METHODS", "Companion", "ForwardView", "NormState", "Plan", "PruningMethod", "prune", "prune_to"]
