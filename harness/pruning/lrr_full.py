"""Learning rate rewinding as Renda et al. (2020) have it: every level is a whole training, with the decaying schedule.

The paper's `lrr` shortens the levels and keeps the learning rate constant (section 4.1); this is its longer original.
"""

from harness.pruning.method import FullTraining


class FullLRR(FullTraining):
    """LRR with the schedule of the final trainings at every level."""
