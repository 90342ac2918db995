"""AWS whose levels are whole trainings: to the paper's `aws` as `lrr_full` is to `lrr`.

The paper shortens the levels of both methods and leaves the learning rate constant; it reports that this has little
impact (section 4.1).
"""

from typing import ClassVar

from harness.config import Schedule, SearchConfig
from harness.pruning.aws import AWS
from harness.pruning.lrr_full import refuse_short_levels


class FullAWS(AWS):
    """AWS whose levels, level 0 too, have the schedule of the final trainings.

    α is drawn in them as in short ones, so that `retrain` of a ticket is another training, without α.
    """

    heeds: ClassVar[tuple[str, ...]] = ("final", "alpha")

    def check(self, config: SearchConfig) -> None:
        """Refuse Algorithm 1 as printed: it has short levels."""
        refuse_short_levels(config)
        super().check(config)

    def schedule(self, config: SearchConfig, level: int) -> Schedule:
        """Return the schedule of the final trainings."""
        return config.final
