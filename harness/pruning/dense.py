"""No pruning: LRR whose mask stays dense, level after level.

It separates the effect of pruning from that of a longer training with a rewound learning rate.
"""

from harness.config import SearchConfig
from harness.pruning.lrr import LRR


class Dense(LRR):
    """LRR that prunes nothing."""

    def check(self, config: SearchConfig) -> None:
        """Refuse options that only pruning has."""
        super().check(config)
        if config.densities is not None or config.one_shot:
            raise ValueError(f"{config.method} prunes nothing: it takes neither densities nor one_shot")

    def pruning(self, config: SearchConfig) -> None:
        """Return None: the mask stays."""
        return
