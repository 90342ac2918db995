"""Distance of the norm parameters ψ from ψ_init. LRR tickets need the trained ψ, AWS tickets should not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class NormParameters:
    """Scales γ and shifts β of all normalisation layers, compared with those of θ_init."""

    scale_mean: float
    scale_sd: float
    """Over channels, population sd (÷ n)."""
    initial_scale_mean: float
    negative_percent: float
    """Share of negative scales."""
    shift: float
    """Mean of |β − β_init|."""

    @classmethod
    def of(
        cls, params: Mapping[str, torch.Tensor], initial: Mapping[str, torch.Tensor], names: Iterable[str]
    ) -> NormParameters:
        """Compare a network's ψ with ψ_init.

        Args:
            params: Parameters of the network.
            initial: Parameters at initialisation.
            names: Names of ψ. A layer's scales are its `weight`, its shifts its `bias`.

        Raises:
            ValueError: The network has no scales.
        """
        names = sorted(names)
        scales = [name for name in names if name.endswith("weight")]
        if not scales:
            raise ValueError("the network has no scales of normalisation layers")
        gamma = torch.cat([params[name].flatten() for name in scales]).double()
        moved = [(params[name] - initial[name]).flatten() for name in names if name.endswith("bias")]
        return cls(
            scale_mean=float(gamma.mean()),
            scale_sd=float(gamma.std(correction=0)),
            initial_scale_mean=float(torch.cat([initial[name].flatten() for name in scales]).double().mean()),
            negative_percent=100 * float((gamma < 0).double().mean()),
            shift=float(torch.cat(moved).double().abs().mean()) if moved else 0.0,
        )
