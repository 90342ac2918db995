"""Learning rate rewinding as in Renda et al. (2020): every level is a full training with a decaying learning rate.

The paper's `lrr` is shorter: its levels have fewer epochs and a constant learning rate (section 4.1).
"""

from typing import ClassVar

from harness.config import Schedule, SearchConfig
from harness.pruning.lrr import LRR
from harness.pruning.method import Run


class FullLRR(LRR):
    """LRR whose levels, level 0 included, use the schedule of the final trainings."""

    # Each level equals a `retrain` run of its ticket, so it is evaluated like one.
    reestimates_batchnorm = False
    heeds: ClassVar[tuple[str, ...]] = ("final",)

    def check(self, config: SearchConfig) -> None:
        """Raise ValueError for contradictory options, and for order=paper."""
        refuse_short_levels(config)
        super().check(config)

    def schedule(self, config: SearchConfig, level: int) -> Schedule:
        """Return the schedule of the final trainings."""
        return config.final

    def retraining(self, ticket: Run) -> Run | None:
        """Return the ticket itself, or None if it is untrained.

        Its level already was a training from θ ⊙ m with the final schedule (method, section 3).
        """
        return ticket if ticket.checkpoint.epochs else None


def refuse_short_levels(config: SearchConfig) -> None:
    """Raise ValueError for order=paper."""
    if config.order == "paper":
        text = "order=paper needs short levels, but the levels of {} are full trainings"
        raise ValueError(text.format(config.method))
