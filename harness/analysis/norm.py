"""Distance of the normalisation parameters ψ from ψ_init; LRR's tickets need the trained ψ, AWS's should not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class NormParameters:
    """Scales γ and shifts β of all normalisation layers together, against those of θ_init."""

    scale_mean: float
    scale_sd: float
    """Over the channels (÷ n)."""
    initial_scale_mean: float
    negative_percent: float
    """Of the scales."""
    shift: float
    """Mean of |β − β_init|."""

    @classmethod
    def of(
        cls, params: Mapping[str, torch.Tensor], initial: Mapping[str, torch.Tensor], names: Iterable[str]
    ) -> NormParameters:
        """Compare a network's ψ with ψ_init; `names` are the parameters of ψ. ValueError for a network without scales.

        As everywhere in PyTorch, a layer's scales are its `weight` and its shifts its `bias`.
        """
        names = sorted(names)
        scales = [name for name in names if name.endswith("weight")]
        if not scales:
            raise ValueError("the network has no scales of normalisation layers to look at")
        gamma = torch.cat([params[name].flatten() for name in scales]).double()
        moved = [(params[name] - initial[name]).flatten() for name in names if name.endswith("bias")]
        return cls(
            scale_mean=float(gamma.mean()),
            scale_sd=float(gamma.std(correction=0)),
            initial_scale_mean=float(torch.cat([initial[name].flatten() for name in scales]).double().mean()),
            negative_percent=100 * float((gamma < 0).double().mean()),
            shift=float(torch.cat(moved).double().abs().mean()) if moved else 0.0,
        )
