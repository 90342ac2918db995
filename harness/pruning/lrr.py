"""Learning rate rewinding (Renda et al. 2020): weights go on from θₜ₋₁, only the learning rate starts again."""

from harness.pruning.method import Method


class LRR(Method):
    """The paper's LRR: short levels at a constant learning rate (section 4.1)."""
