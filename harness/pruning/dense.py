"""No pruning: LRR whose mask stays dense, level after level.

It tells what pruning does from what longer training with a rewound learning rate does.
"""

from __future__ import annotations

from harness.pruning.lrr import forward_view, start

__all__ = ["forward_view", "start"]
