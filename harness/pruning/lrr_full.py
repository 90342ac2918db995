"""Learning rate rewinding as Renda et al. (2020) have it: every level is a whole training with the decaying schedule.

The paper's `lrr` shortens the levels and keeps the learning rate constant (section 4.1); this is what it shortens.
"""

from __future__ import annotations

from harness.pruning.lrr import forward_view, start

__all__ = ["forward_view", "start"]
