"""Learning rate rewinding as Renda et al. (2020) have it: every level is a whole training, with the decaying schedule.

The paper's `lrr` shortens the levels and keeps the learning rate constant (section 4.1); this is its longer original.
"""

from typing import ClassVar

from harness.config import Schedule, SearchConfig
from harness.pruning.lrr import LRR
from harness.pruning.method import Run


class FullLRR(LRR):
    """LRR whose levels, level 0 too, are whole trainings with the schedule of the finals."""

    reestimates_batchnorm = False  # each level is the retraining of its ticket, and measured like one
    heeds: ClassVar[tuple[str, ...]] = ("final",)

    def check(self, config: SearchConfig) -> None:
        """Refuse Algorithm 1 as printed: it has short levels."""
        refuse_short_levels(config)
        super().check(config)

    def schedule(self, config: SearchConfig, level: int) -> Schedule:
        """Return the schedule of the final trainings."""
        return config.final

    def retraining(self, ticket: Run) -> Run | None:
        """Return the ticket, trained from θ ⊙ m with the final schedule (method, section 3); None if untrained."""
        return ticket if ticket.checkpoint.epochs else None


def refuse_short_levels(config: SearchConfig) -> None:
    """Raise ValueError for order=paper."""
    if config.order == "paper":
        text = "order=paper is Algorithm 1 with short levels; those of {} are full trainings"
        raise ValueError(text.format(config.method))
