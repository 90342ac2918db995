"""How many weights each level keeps: by a fraction or a list of densities, over all layers or in each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

from harness.config import Scope, SearchConfig
from harness.masks import Mask
from harness.pruning.magnitude import keep_largest


@dataclass(frozen=True)
class PruningSchedule:
    """The counts of a search's masks; `fraction` and `densities` as in SearchConfig."""

    fraction: float
    densities: tuple[float, ...] | None = None
    scope: Scope = "global"
    one_shot: bool = False

    @classmethod
    def of(cls, config: SearchConfig) -> Self:
        """Return the schedule that a search's settings describe."""
        return cls(config.pruning_fraction, config.densities, config.pruning_scope, config.one_shot)

    def count(self, level: int, live: int, numel: int) -> int:
        """Return how many of `numel` weights, `live` of them kept at the level pruned from, level `level` ≥ 1 keeps.

        ⌊(1 − fraction) · live⌋; in one shot as many as level after level would have left; of an explicit density the
        nearest whole number. ValueError if that is more than live.
        """
        if self.densities is None:
            for _ in range(level if self.one_shot else 1):
                live = int((1 - self.fraction) * live)
            return live
        count = round(self.densities[level - 1] * numel)
        if count > live:
            raise ValueError(f"density {self.densities[level - 1]} keeps {count} weights, but only {live} are alive")
        return count

    def density(self, level: int) -> float:
        """Return the density that level `level` ≥ 1 aims at."""
        return (1 - self.fraction) ** level if self.densities is None else self.densities[level - 1]

    def counts(self, level: int, mask: Mask) -> dict[str, int]:
        """Return how many weights level `level` keeps of `mask`: in each tensor, or under '' over all of them."""
        if self.scope == "global":
            return {"": self.count(level, mask.num_remaining, mask.numel)}
        tensors = mask.tensors.items()
        return {name: self.count(level, int(kept.sum()), kept.numel()) for name, kept in tensors}

    def next_mask(self, importance: Mapping[str, torch.Tensor], mask: Mask, level: int) -> Mask:
        """Return the mask of level `level` ≥ 1: of the weights that `mask` keeps the most important ones."""
        counts = self.counts(level, mask)
        if self.scope == "global":
            return keep_largest(importance, mask, counts[""])
        layers = {name: Mask({name: kept}) for name, kept in mask.tensors.items()}
        return Mask(
            {name: keep_largest(importance, layer, counts[name]).tensors[name] for name, layer in layers.items()}
        )

    def determinants(self, level: int) -> dict[str, Any]:
        """Return the inputs to the key of level `level` that are not the default, given the level it is pruned from."""
        unusual: dict[str, Any] = {}
        if self.densities is not None and level:
            unusual["density"] = self.densities[level - 1]
        if self.scope != "global":
            unusual["scope"] = self.scope
        if self.one_shot:
            unusual["one_shot"] = True
        return {"pruning": unusual} if unusual and level else {}
