"""How a mask is found. A method is one file and one line of METHODS."""

from harness.pruning import aws, lrr
from harness.pruning.magnitude import prune
from harness.pruning.method import ForwardView, NormState, PruningMethod

METHODS: dict[str, PruningMethod] = {
    "aws": PruningMethod(aws.start, aws.forward_view, sees_alpha=True),
    "lrr": PruningMethod(lrr.start, lrr.forward_view),
}

__all__ = ["METHODS", "ForwardView", "NormState", "PruningMethod", "prune"]
