"""Every random stream, named and hashed from one of two seeds.

`init_seed` draws θ_init; `sgd_seed` draws u, the noise of training 𝒜(θ, u): data order, augmentation and AWS's α.
Streams are hashed from (seed, purpose, …), never added: seed + epoch would make seeds 1 and 2 share shifted epochs.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return the uint64 seed of the stream that `seed` and `purpose` name."""
    words = [f"i{seed}"] + [f"{'s' if isinstance(word, str) else 'i'}{word}" for word in purpose]
    return int.from_bytes(hashlib.sha256("\x1f".join(words).encode()).digest()[:8], "little")


@dataclass(frozen=True)
class SgdNoise:
    """The noise u of one training 𝒜(θ, u).

    `scope` is ("search", level) inside a search, unless the method has another, and ("final",) in every final training
    of any kind: kinds compared under one sgd_seed see the same u.
    """

    sgd_seed: int
    scope: tuple[str | int, ...]
    alpha: str = "uniform"
    """How α is distributed: `harness.config.AlphaDistribution`."""

    def key(self, purpose: str, *where: int) -> int:
        """Return the uint64 key of one purpose, e.g. in one epoch, or at one step of it."""
        return derive_seed(self.sgd_seed, *self.scope, purpose, *where)

    def permutation(self, epoch: int, num_samples: int) -> np.ndarray:
        """Return the epoch's data order: int64 (num_samples,), the same for any number of processes."""
        generator = np.random.Generator(np.random.Philox(key=self.key("order", epoch)))
        return generator.permutation(num_samples).astype(np.int64, copy=False)

    def alphas(self, epoch: int, num_steps: int) -> np.ndarray:
        """Return AWS's α of each step of the epoch: float64 (num_steps,), the same on every rank.

        Every distribution is made from the same uniform draws, so that ablations differ in nothing else.
        """
        uniform = np.random.Generator(np.random.Philox(key=self.key("alpha", epoch))).random(num_steps)
        match self.alpha:
            case "uniform":
                return uniform
            case "zero":
                return np.zeros(num_steps)
            case "bernoulli":
                return np.floor(2 * uniform)
            case "half_to_one":
                return (1 + uniform) / 2
        raise ValueError(f"unknown distribution of α {self.alpha!r}; known: uniform, zero, bernoulli, half_to_one")


def alpha_mean(alphas: np.ndarray) -> float:
    """Return the mean of an epoch's α, the sum rounded once: the same on every machine, so that it proves the seed."""
    return math.fsum(alphas.tolist()) / len(alphas)
