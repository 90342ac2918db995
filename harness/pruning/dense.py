"""Baseline without pruning: LRR whose mask stays dense at every level.

It separates the effect of pruning from the effect of longer training with a rewound learning rate.
"""

from harness.config import SearchConfig
from harness.pruning.lrr import LRR


class Dense(LRR):
    """LRR that prunes nothing."""

    def check(self, config: SearchConfig) -> None:
        """Raise ValueError for contradictory options, and for options about pruning."""
        super().check(config)
        if config.densities is not None or config.one_shot:
            raise ValueError(f"{config.method} prunes nothing: remove densities and one_shot")

    def pruning(self, config: SearchConfig) -> None:
        """Return None, so that the mask stays dense."""
        return
