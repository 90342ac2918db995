"""AWS with full-length levels. `aws_full` extends `aws` as `lrr_full` extends `lrr`.

The paper shortens the levels of both methods and keeps the learning rate constant. It reports that this has little
impact (section 4.1).
"""

from typing import ClassVar

from harness.config import Schedule, SearchConfig
from harness.pruning.aws import AWS
from harness.pruning.lrr_full import refuse_short_levels


class FullAWS(AWS):
    """AWS whose levels, level 0 included, use the schedule of the final trainings.

    The levels draw α, as the short levels of `aws` do. So `--kind retrain` trains anew,
    without α. (For `lrr_full` it returns the level.)
    """

    heeds: ClassVar[tuple[str, ...]] = ("final", "alpha")

    def check(self, config: SearchConfig) -> None:
        """Raise ValueError for contradictory options, and for order=paper."""
        refuse_short_levels(config)
        super().check(config)

    def schedule(self, config: SearchConfig, level: int) -> Schedule:
        """Return the schedule of the final trainings."""
        return config.final
