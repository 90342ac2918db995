"""Gem-Miner (Sreenivasan et al. 2022, "Rare gems"): a mask learnt as scores over frozen weights, then fine-tuned.

Every weight w₀ is a signed constant and stays; a score p in [0, 1] is trained for it. The forward pass sees
w₀ · q · 1[p > ½], the gradient goes straight through the step to p, and every few epochs the globally lowest scores are
frozen to q = 0. The parameters of the network in training are the scores themselves: a view puts the effective weights
in their place for a step, as AWS does with ψ, so nothing is patched and checkpoints have plain keys. The penalty λ‖p‖²
is coupled weight decay of 2λ, whose gradient is the same. Networks have no biases and no affine normalisation: biases
stay 0 and ψ at its initial value.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch

from harness.common.seeds import derive_seed
from harness.masks import Mask
from harness.pruning.lrr import forward_view
from harness.pruning.magnitude import prune_to
from harness.pruning.method import ForwardView, Params

__all__ = ["ScoreTraining", "draw_scores", "effective", "forward_view", "kept_counts", "num_freezings", "start"]


def start(origin: Params, parent: Params, norm: Collection[str]) -> Params:
    """Fine-tuning starts from w₀ ⊙ q: the weights of θ_init, without biases (the mask is applied by the caller)."""
    return {
        name: torch.zeros_like(tensor) if is_bias(name) and name not in norm else tensor
        for name, tensor in origin.items()
    }


def is_bias(name: str) -> bool:
    """Whether a parameter is a layer's bias."""
    return name.rpartition(".")[2] in ("bias", "in_proj_bias")


def draw_scores(shapes: Mapping[str, torch.Size], init_seed: int) -> dict[str, torch.Tensor]:
    """Return p ~ U[0, 1) for every weight; each tensor has its own stream of init_seed."""
    scores = {}
    for name, shape in shapes.items():
        generator = np.random.Generator(np.random.Philox(key=derive_seed(init_seed, "scores", name)))
        scores[name] = torch.from_numpy(generator.random(tuple(shape), dtype=np.float32))
    return scores


def effective(weight: torch.Tensor, kept: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    """Return w₀ · q · 1[p > ½]; pruned weights are +0.0."""
    return torch.where(kept & (score > 0.5), weight, torch.zeros_like(weight))


def num_freezings(epochs: int, every: int) -> int:
    """Return ⌊(E − 1) / every⌋: none comes after the last epoch. ValueError if there is none."""
    if (number := (epochs - 1) // every) < 1:
        raise ValueError(
            f"scores are frozen every {every} epochs and trained for {epochs}: train for {every + 1} or more"
        )
    return number


def kept_counts(numel: int, density: float, freezings: int) -> list[int]:
    """Return how many of `numel` weights live after each freezing: the share r = 1 − density^(1/freezings) goes."""
    counts = []
    for _ in range(freezings):
        numel = int(density ** (1 / freezings) * numel)
        counts.append(numel)
    return counts


class ScoreTraining:
    """The training of scores: the view of its steps and its `Companion`."""

    def __init__(self, weights: Params, scored: Collection[str], density: float, epochs: int, every: int) -> None:
        """`weights` are w₀ of all parameters, `scored` the names of those that have scores."""
        self.weights = {name: weights[name] for name in sorted(scored)}
        self.every = every
        numel = sum(weight.numel() for weight in self.weights.values())
        self.counts = kept_counts(numel, density, num_freezings(epochs, every))
        self.mask = Mask.dense(self.weights, self.weights)
        """q, the weights that are not frozen to 0."""

    def attach(self, model: torch.nn.Module) -> None:
        """Take the network whose parameters are the scores."""
        params = dict(model.named_parameters())
        self._scores: list[torch.Tensor] = [params[name] for name in self.weights]
        self._saved = [torch.empty_like(score) for score in self._scores]
        self._set_live()

    @property
    def view(self) -> ForwardView:
        """Of each step: the effective weights in place of the scores, and w₀ · q times their gradient for p's."""
        return self._at

    @contextmanager
    def _at(self, alpha: float) -> Iterator[None]:
        with torch.no_grad():
            torch._foreach_copy_(self._saved, self._scores)
            self._put_effective_()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._scores, self._saved)
        grads = [score.grad for score in self._scores if score.grad is not None]
        if grads:
            torch._foreach_mul_(grads, self._live)

    @torch.no_grad()
    def after_step(self, epoch: int, steps: int) -> None:
        """Clip p to [0, 1]."""
        torch._foreach_clamp_min_(self._scores, 0.0)
        torch._foreach_clamp_max_(self._scores, 1.0)

    def after_epoch(self, epoch: int) -> None:
        """Freeze the lowest scores to q = 0, if it is time."""
        done = epoch + 1
        if done % self.every == 0 and done // self.every <= len(self.counts):
            self.mask = prune_to(self.scores, self.mask, self.counts[done // self.every - 1])
            self._set_live()

    @property
    def scores(self) -> dict[str, torch.Tensor]:
        """p as it stands, by name, on the CPU."""
        return {n: s.detach().cpu().clone() for n, s in zip(self.weights, self._scores, strict=True)}

    @torch.no_grad()
    def settle_(self) -> dict[str, torch.Tensor]:
        """Leave the effective weights in the network for good; return the scores that were in it."""
        scores = self.scores
        torch._foreach_copy_(self._saved, self._scores)
        self._put_effective_()
        return scores

    def state(self) -> dict[str, torch.Tensor]:
        """q."""
        return {name: kept.clone() for name, kept in self.mask.tensors.items()}

    def restore_(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take q of the interrupted training."""
        self.mask = Mask(dict(tensors))
        self._set_live()

    def _set_live(self) -> None:
        """w₀ · q, laid out like the scores."""
        pairs = zip(self.weights.items(), self._scores, strict=True)
        self._live = [
            torch.empty_like(score, requires_grad=False).copy_(weight * self.mask.tensors[name])
            for (name, weight), score in pairs
        ]

    def _put_effective_(self) -> None:
        for score, saved, live in zip(self._scores, self._saved, self._live, strict=True):
            score.copy_(torch.where(saved > 0.5, live, torch.zeros_like(live)))
