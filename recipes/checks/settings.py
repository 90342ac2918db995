"""Settings of the self-check. This module imports no torch, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.config import DataConfig, ModelConfig, OptimConfig, Schedule, SearchConfig

SEARCH_SEED = 1


@dataclass(frozen=True)
class SelfCheck:
    """What the self-check trains."""

    method: Literal["both", "aws", "lrr"] = "both"
    """How masks are found."""
    epochs: int = 2
    """Epochs of the warm-up and of each level. The final training has twice as many, and at least four."""
    width: int = 16
    """Channels of ResNet-8's first stage."""
    batch_size: int = 64
    """Images of an optimizer step."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Pruning methods to check."""
        return ("aws", "lrr") if self.method == "both" else (self.method,)

    @property
    def seconds(self) -> int:
        """Approximate duration on one core at the default width and batch size."""
        return 4 + len(self.methods) * (5 + 8 * self.epochs)

    def settings(self, where: Path) -> SearchConfig:
        """Return the settings, with data and runs below `where`."""
        return SearchConfig(
            data=DataConfig("digits", directory=where / "data", loader="memory"),
            model=ModelConfig("resnet8", width=self.width),
            optim=OptimConfig("sgd", lr=0.1, momentum=0.9, weight_decay=5e-4),
            final=Schedule(max(4, 2 * self.epochs), "step"),  # two milestones need at least 4 epochs
            warmup_epochs=self.epochs,
            level_epochs=self.epochs,
            num_levels=2,
            global_batch_size=self.batch_size,
            init_seed=SEARCH_SEED,
            sgd_seed=SEARCH_SEED,
            checkpoint_every=0,
            runs=where / "runs",
            offline=True,
        )
