"""Gem-Miner (Sreenivasan et al. 2022, "Rare gems"): a mask learnt as scores over frozen weights, then fine-tuned.

Every weight w₀ is a signed constant and stays. A score p in [0, 1] is trained for it: the forward pass sees
w₀ · q · 1[p > ½], the gradient goes straight through the step to p, and every n epochs the globally lowest scores are
frozen to q = 0: after epochs n + 1, 2n + 1, … As in the authors' code (github.com/ksreenivasan/pruning_is_enough), all
live scores go that equal the highest of the lowest share. Scores clipped to 0 are equal: more than the share can go.

The parameters of the network in training are the scores themselves. A view puts the effective weights in their place
for a step, as AWS does with ψ, so nothing is patched and checkpoints have plain keys. The penalty λ‖p‖² is coupled
weight decay of 2λ, whose gradient is the same. Networks have no biases and no affine normalisation: biases stay 0 and ψ
at its initial value.

One density is searched, not a level after another. `num_levels` T and the pruning fraction (or the list of densities)
say which: that of level T, or less where scores are equal. Both trainings are runs of level T, the second trained-from
the first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from harness.checkpoint import Checkpoint
from harness.common.digest import canonical_json
from harness.common.seeds import SgdNoise, derive_seed
from harness.config import GemMinerConfig, SearchConfig
from harness.masks import Mask
from harness.pruning.lrr import LRR
from harness.pruning.magnitude import PruningSchedule, prune_to
from harness.pruning.method import (
    ForwardView,
    LevelContext,
    Params,
    SearchHandle,
    StartPoint,
    Statement,
    StoredLevel,
    TrainingHook,
)

SCORES = "scores.safetensors"
"""File that keeps the trained scores beside the network that they make."""
_SCORING = "scores"
"""Phase of the first training; the second has none."""


class GemMiner(LRR):
    """Scores over frozen weights, then fine-tuning of the weights that are kept."""

    masks_classifier = True
    heeds = ()
    searches_one_density = True

    def check(self, config: SearchConfig) -> None:
        """Refuse the options that Gem-Miner does not have."""
        if config.num_levels == 0:
            raise ValueError("gem_miner learns the mask of level num_levels; it must be 1 or more")
        usual = {"order": "default", "one_shot": False, "pruning_scope": "global"}
        if given := [name for name, value in usual.items() if getattr(config, name) != value]:
            raise ValueError(f"gem_miner learns one mask of all layers together: leave out {', '.join(given)}")
        if config.initialisation not in ("network", "constant"):
            raise ValueError(f"gem_miner's weights are signed constants; initialisation {config.initialisation} is not")

    def initialisation(self, config: SearchConfig) -> str:
        """Return "constant": the frozen weights are signed constants."""
        return "constant"

    def own_settings(self, config: SearchConfig, steps_per_epoch: int) -> dict[str, Any]:
        """Return Gem-Miner's own settings."""
        return {"gem_miner": config.gem_miner}

    def search_epochs(self, config: SearchConfig, levels: int) -> int:
        """Return the epochs of one density."""
        return config.gem_miner.score_epochs + config.gem_miner.finetune.epochs

    def search(self, search: SearchHandle) -> list[Any]:
        """Return the fine-tuned network: [θ_T, m_T], m_T = q."""
        config, gem, level = search.config, search.config.gem_miner, search.config.num_levels
        head = f"{search.classifier}.weight"
        scored = sorted(search.prunable | {head} & search.theta_init.params.keys())
        density = PruningSchedule.of(config).density(level)

        # Train the scores of the prunable weights and of the classifier's.
        optim, schedule = gem.scoring()
        dense = search.context(level, Mask.dense(search.theta_init.params, scored), _SCORING)
        training = ScoreTraining(self._weights(dense), scored, density, gem)
        freezing = {"density": density, "freeze_every_epochs": gem.freeze_every_epochs}
        images = {} if gem.num_train is None else {"num_train": gem.num_train}
        chosen = None if gem.num_train is None else partial(choose_images, gem.num_train, config.sgd_seed)
        found = search.train(
            dense,
            density,
            schedule,
            parent=(search.root, "initialised-from"),
            start=lambda: self.start(dense),
            noise=SgdNoise(config.sgd_seed, ("search", level, "scores")),
            view=lambda norm: training.view,
            hook=training,
            optim=optim,
            frozen=dense.theta_init.params.keys() - set(scored),
            determinants={"pruning_fraction": None, "optim": optim.determinants(), "scores": freezing}
            | ({} if gem.freezing == "exact" else {"freezing": gem.freezing})
            | images,
            recorded={"optim": optim.determinants(), "scores": freezing},
            reestimate=True,
            choose=chosen,
        )

        # Fine-tune the weights that the scores keep; ψ and biases stay.
        optim, schedule = gem.finetuning()
        kept = search.context(level, found.mask)
        frozen = search.norm | {name for name in search.theta_init.params if is_bias(name)}
        return [
            search.train(
                kept,
                found.mask.density,
                schedule,
                parent=(found.key, "trained-from"),
                start=lambda: self.start(kept, epochs=found.checkpoint.epochs),
                noise=SgdNoise(config.sgd_seed, ("search", level, "finetune")),
                view=self.view,
                optim=optim,
                frozen=frozen,
                determinants={"pruning_fraction": None, "optim": optim.determinants()} | images,
                recorded={"optim": optim.determinants(), "scores": None},
                reestimate=False,
                choose=chosen,
            )
        ]

    def start(self, ctx: LevelContext, epochs: int = 0) -> StartPoint:
        """Return the drawn scores, with the other weights around them; for fine-tuning w₀ ⊙ q."""
        weights = self._weights(ctx)
        if ctx.phase != _SCORING:
            return StartPoint.masked(weights, ctx.theta_init.buffers, ctx.mask, epochs=epochs)
        scores = draw_scores(ctx.mask.shapes(), ctx.config.init_seed)
        return StartPoint(weights | scores, ctx.theta_init.buffers, ctx.mask, weights=weights)

    def statements(self, stored: StoredLevel) -> Iterator[Statement]:
        """Check the count, and that the network is w₀ · q · 1[p > ½] of the stored scores; or that q is kept.

        Equal scores are frozen together, so that fewer weights than planned can remain, and never more.

        Which weights were frozen when is not recorded: that the mask is that of the lowest scores at each time is not
        checked.
        """
        ctx, mask = stored.context, stored.context.mask
        if ctx.phase != _SCORING:
            if stored.parent_mask is not None:
                same = mask.equal(stored.parent_mask)
                yield Statement("mask", same, "its mask is not the one that the scores gave")
            return
        gem, density = ctx.config.gem_miner, PruningSchedule.of(ctx.config).density(ctx.level)
        freezings = num_freezings(gem.score_epochs, gem.freeze_every_epochs)
        found, exact = mask.num_remaining, gem.freezing == "exact"
        planned = (kept_counts if exact else most_kept)(mask.numel, density, freezings)[-1]
        holds = found == planned if exact else 0 < found <= planned
        yield Statement("count", holds, f"{found} weights remain; {planned} should{'' if exact else ', or fewer'}")
        if stored.checkpoint is None or SCORES not in stored.networks:
            return
        made, scores = self._weights(ctx), stored.networks[SCORES].params
        made |= {
            name: effective(ctx.theta_init.params[name], kept, scores[name]) for name, kept in mask.tensors.items()
        }
        differ = [name for name, tensor in stored.checkpoint.params.items() if not torch.equal(tensor, made[name])]
        yield Statement(
            "pruned", not differ, f"{', '.join(differ[:3])} are not what the scores make of the frozen weights"
        )

    def recorded_settings(self, config: SearchConfig, phase: str) -> dict[str, Any]:
        """Return optimizer, schedule and images of the training, and how scores are frozen."""
        gem, scoring = config.gem_miner, phase == _SCORING
        optim, schedule = gem.scoring() if scoring else gem.finetuning()
        return {
            "optim": json.loads(canonical_json(optim.determinants())),
            "schedule": schedule.determinants(),
            "num_train": gem.num_train,
            "freezing": gem.freezing if scoring and gem.freezing != "exact" else None,
        }

    def departure(self, config: SearchConfig) -> str | None:
        """Return how scores were frozen, if not as the method's authors do."""
        if config.gem_miner.freezing == "authors":
            return None
        return "its scores were frozen the other way: an epoch before the authors', and exact counts of equal ones"

    @staticmethod
    def _weights(ctx: LevelContext) -> dict[str, torch.Tensor]:
        """Return w₀: the weights of θ_init, without biases."""
        return {
            name: torch.zeros_like(tensor) if is_bias(name) and name not in ctx.norm else tensor
            for name, tensor in ctx.theta_init.params.items()
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


def choose_images(number: int, sgd_seed: int, num_train: int) -> np.ndarray:
    """Return the positions of `number` of `num_train` training images: int64, rising; the same on every rank.

    Both trainings of every density see the same ones. ValueError if there are fewer.
    """
    if number > num_train:
        raise ValueError(f"gem_miner.num_train is {number}; the training set has {num_train} images")
    generator = np.random.Generator(np.random.Philox(key=derive_seed(sgd_seed, "gem_miner", "images")))
    return np.sort(generator.permutation(num_train)[:number]).astype(np.int64, copy=False)


def num_freezings(epochs: int, every: int) -> int:
    """Return ⌊(E − 1) / every⌋: none comes in the first `every` epochs. ValueError if there is none."""
    if (number := (epochs - 1) // every) < 1:
        raise ValueError(
            f"scores are frozen every {every} epochs and trained for {epochs}: train for {every + 1} or more"
        )
    return number


def kept_counts(numel: int, density: float, freezings: int) -> list[int]:
    """Return how many of `numel` weights live after each freezing of exact counts, ⌊(1 − r) · live⌋: see `share`."""
    counts = []
    for _ in range(freezings):
        numel = int(density ** (1 / freezings) * numel)
        counts.append(numel)
    return counts


def share(density: float, freezings: int) -> float:
    """Return r = 1 − density^(1/freezings), the share of the live scores that each freezing takes."""
    return 1 - math.exp(math.log(density) / freezings)


def most_kept(numel: int, density: float, freezings: int) -> list[int]:
    """Return how many of `numel` weights live after each freezing if no two scores are equal: ⌈r · live⌉ go."""
    counts = []
    for _ in range(freezings):
        numel -= math.ceil(share(density, freezings) * numel)
        counts.append(numel)
    return counts


def freeze_lowest(scores: Params, mask: Mask, fraction: float) -> Mask:
    """Freeze the ⌈fraction · live⌉ lowest live scores, and all that equal the highest of these.

    ValueError if nothing would stay.
    """
    live = torch.cat([scores[name][kept] for name, kept in mask.tensors.items()])
    threshold = live.sort().values[math.ceil(fraction * live.numel()) - 1]
    frozen = Mask({name: kept & (scores[name] > threshold) for name, kept in mask.tensors.items()})
    if frozen.num_remaining == 0:
        raise ValueError(
            f"the lowest {100 * fraction:.1f} % of {live.numel()} scores equal all others: nothing would stay; train "
            "scores longer, or with another penalty or learning rate"
        )
    return frozen


class ScoreTraining(TrainingHook):
    """The training of scores: the view of its steps, and its hook."""

    def __init__(self, weights: Params, scored: Collection[str], density: float, gem: GemMinerConfig) -> None:
        """`weights` are w₀ of all parameters, `scored` the names of those that have scores."""
        self.weights = {name: weights[name] for name in sorted(scored)}
        self.every, self.exact = gem.freeze_every_epochs, gem.freezing == "exact"
        numel = sum(weight.numel() for weight in self.weights.values())
        freezings = num_freezings(gem.score_epochs, gem.freeze_every_epochs)
        self.share, self.counts = share(density, freezings), kept_counts(numel, density, freezings)
        self.mask = Mask.dense(self.weights, self.weights)
        """q, the weights that are not frozen to 0."""

    def attach(self, model: nn.Module) -> None:
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
        # Its authors count epochs from 0, and freeze after every one but 0 that is a multiple.
        freezing, rest = divmod(epoch + self.exact, self.every)
        if rest or not 1 <= freezing <= len(self.counts):
            return
        if self.exact:
            self.mask = prune_to(self.scores, self.mask, self.counts[freezing - 1])
        else:
            self.mask = freeze_lowest(self.scores, self.mask, self.share)
        self._set_live()

    @property
    def scores(self) -> dict[str, torch.Tensor]:
        """p as it stands, by name, on the CPU."""
        return {n: s.detach().cpu().clone() for n, s in zip(self.weights, self._scores, strict=True)}

    @torch.no_grad()
    def finish(self, mask: Mask) -> Mask:
        """Leave the effective weights in the network for good; return q."""
        self._trained = self.scores
        torch._foreach_copy_(self._saved, self._scores)
        self._put_effective_()
        del self._scores, self._saved, self._live  # fine-tuning needs their room on the device
        return self.mask

    def networks(self, trained: Checkpoint) -> dict[str, Checkpoint]:
        """Return the trained scores as a network of their own."""
        return {SCORES: Checkpoint(self._trained, {}, trained.level, trained.epochs, trained.level_digest)}

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
