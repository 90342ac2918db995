"""Derive every random stream from one of two seeds by hashing.

`init_seed` draws θ_init. `sgd_seed` draws u, the noise of training 𝒜(θ, u): data order, augmentation and AWS's α. A
stream's seed is a hash of (seed, purpose, …). Sums such as seed + epoch are not used, because seeds 1 and 2 would then
share streams one epoch apart.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return the uint64 seed of the stream named by `seed` and `purpose`."""
    words = [f"i{seed}"] + [f"{'s' if isinstance(word, str) else 'i'}{word}" for word in purpose]
    return int.from_bytes(hashlib.sha256("\x1f".join(words).encode()).digest()[:8], "little")


@dataclass(frozen=True)
class SgdNoise:
    """The noise u of one training 𝒜(θ, u).

    `scope` separates the streams of different trainings. It is ("search", level) inside a search unless the method
    defines another, and ("final",) in every final training. Final trainings of all kinds with equal sgd_seed therefore
    see the same u.
    """

    sgd_seed: int
    scope: tuple[str | int, ...]
    alpha: str = "uniform"
    """Distribution of α, one of `harness.config.AlphaDistribution`."""

    def key(self, purpose: str, *where: int) -> int:
        """Return the uint64 key of one purpose.

        Args:
            purpose: Name of the stream, such as "order" or "augment".
            where: Indices that narrow it, such as the epoch and the step.
        """
        return derive_seed(self.sgd_seed, *self.scope, purpose, *where)

    def permutation(self, epoch: int, num_samples: int) -> np.ndarray:
        """Return the data order of an epoch, int64 (num_samples,).

        The order does not depend on the number of processes.
        """
        generator = np.random.Generator(np.random.Philox(key=self.key("order", epoch)))
        return generator.permutation(num_samples).astype(np.int64, copy=False)

    def alphas(self, epoch: int, num_steps: int) -> np.ndarray:
        """Return AWS's α for each step of an epoch, float64 (num_steps,).

        The values are equal on every rank. All distributions transform the same uniform draws, so that ablations differ
        in nothing else.
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
    """Return the mean of an epoch's α.

    The exact sum is rounded once, so the mean is equal on every machine. Equal means show that two runs used the same
    α.
    """
    return math.fsum(alphas.tolist()) / len(alphas)
