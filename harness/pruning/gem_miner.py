"""Gem-Miner (Sreenivasan et al. 2022, "Rare gems"): learn a mask as scores over frozen weights, then fine-tune.

Every weight w₀ is a signed constant and stays fixed. Each has a trainable score p in [0, 1] and a bit q, at first 1.
The forward pass uses w₀ · q · 1[p > ½]. The gradient passes straight through the step function to p. After epochs
n + 1, 2n + 1, …, a fixed share of the live scores is frozen: the globally lowest get q = 0. All scores equal to the
highest of this share freeze with it, as in the authors' code (github.com/ksreenivasan/pruning_is_enough). Many scores
are clipped to exactly 0, so more than the share can freeze.

During score training, the network's parameters hold the scores. A view replaces them by the effective weights for each
step, as AWS does with ψ. So no module is patched and checkpoints have plain keys. The penalty λ‖p‖² is applied as
coupled weight decay of 2λ, which has the same gradient. Gem-Miner's networks have no biases and no affine normalisation
layers. Therefore biases stay 0 and ψ keeps its initial value.

A search produces a ticket of one density instead of a sequence of levels. The target is the density of level
T = `num_levels`, from the pruning fraction or the list of densities. Equal scores can make the ticket sparser. Score
training and fine-tuning are both runs of level T. The first is the parent of the second (`trained-from`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
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
"""File with the trained scores, stored beside the checkpoint of score training."""
_SCORING = "scores"
"""Phase name of score training. Fine-tuning has the empty phase name."""


class GemMiner(LRR):
    """Train scores over frozen weights, then fine-tune the kept weights."""

    masks_classifier = True
    heeds = ()
    searches_one_density = True

    def check(self, config: SearchConfig) -> None:
        """Raise ValueError for options that Gem-Miner does not support."""
        if config.num_levels == 0:
            raise ValueError("gem_miner learns the mask of level num_levels, which must be 1 or more")
        usual = {"order": "default", "one_shot": False, "pruning_scope": "global"}
        if given := [name for name, value in usual.items() if getattr(config, name) != value]:
            raise ValueError(f"gem_miner learns one mask for all layers together: remove {', '.join(given)}")
        if config.initialisation not in ("network", "constant"):
            raise ValueError(
                f"gem_miner needs initialisation network or constant (signed constants); got {config.initialisation}"
            )

    def initialisation(self, config: SearchConfig) -> str:
        """Return "constant", because the frozen weights are signed constants."""
        return "constant"

    def own_settings(self, config: SearchConfig, steps_per_epoch: int) -> dict[str, Any]:
        """Return the settings that only Gem-Miner has."""
        return {"gem_miner": config.gem_miner}

    def search_epochs(self, config: SearchConfig, levels: int) -> int:
        """Return the epochs of score training plus fine-tuning. They do not depend on `levels`."""
        return config.gem_miner.score_epochs + config.gem_miner.finetune.epochs

    def search(self, search: SearchHandle) -> list[Any]:
        """Run score training and fine-tuning (or load their runs), and return the fine-tuned run.

        Its network is [θ_T, m_T] with m_T = q.
        """
        config, gem, level = search.config, search.config.gem_miner, search.config.num_levels
        heads = {f"{name}.weight" for name in search.classifier}
        scored = sorted(search.prunable | heads & search.theta_init.params.keys())
        density = PruningSchedule.of(config).density(level)

        # Phase: train the scores of all prunable weights and of the classifier's weight.
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

        # Phase: fine-tune the kept weights, with ψ and biases fixed.
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
        """Return the start of score training or, for an empty phase name, of fine-tuning.

        Score training starts from random scores in place of the scored weights. Fine-tuning starts from w₀ ⊙ q.
        """
        weights = self._weights(ctx)
        if ctx.phase != _SCORING:
            return StartPoint.masked(weights, ctx.theta_init.buffers, ctx.mask, epochs=epochs)
        scores = draw_scores(ctx.mask.shapes(), ctx.config.init_seed)
        return StartPoint(weights | scores, ctx.theta_init.buffers, ctx.mask, weights=weights)

    def statements(self, stored: StoredLevel) -> Iterator[Statement]:
        """Check a stored run of score training or of fine-tuning.

        After score training, the network must equal w₀ · q · 1[p > ½] for the stored scores. Under `freezing` "exact",
        the number of kept weights must be as planned. Otherwise fewer may remain, since equal scores freeze together.
        After fine-tuning, the mask must equal its parent's mask.

        The runs do not record the scores at each freezing. So the choice of the lowest scores cannot be checked.
        """
        # Phase: check the mask of fine-tuning.
        ctx, mask = stored.context, stored.context.mask
        if ctx.phase != _SCORING:
            if stored.parent_mask is not None:
                same = mask.equal(stored.parent_mask)
                yield Statement("mask", same, "its mask differs from the mask of its score training")
            return

        # Phase: check the number of weights kept by score training.
        gem, density = ctx.config.gem_miner, PruningSchedule.of(ctx.config).density(ctx.level)
        freezings = num_freezings(gem.score_epochs, gem.freeze_every_epochs)
        found, exact = mask.num_remaining, gem.freezing == "exact"
        planned = (kept_counts if exact else most_kept)(mask.numel, density, freezings)[-1]
        holds = found == planned if exact else 0 < found <= planned
        yield Statement("count", holds, f"{found} weights remain; {planned} should{'' if exact else ', or fewer'}")

        # Phase: recompute the effective weights from the stored scores, and compare them with the checkpoint.
        if stored.checkpoint is None or SCORES not in stored.networks:
            return
        made, scores = self._weights(ctx), stored.networks[SCORES].params
        made |= {
            name: effective(ctx.theta_init.params[name], kept, scores[name]) for name, kept in mask.tensors.items()
        }
        differ = [name for name, tensor in stored.checkpoint.params.items() if not torch.equal(tensor, made[name])]
        yield Statement(
            "pruned", not differ, f"{', '.join(differ[:3])} do not follow from the stored scores and frozen weights"
        )

    def recorded_settings(self, config: SearchConfig, phase: str) -> dict[str, Any]:
        """Return the optimizer, schedule, number of images and freezing rule that the settings imply."""
        gem, scoring = config.gem_miner, phase == _SCORING
        optim, schedule = gem.scoring() if scoring else gem.finetuning()
        return {
            "optim": json.loads(canonical_json(optim.determinants())),
            "schedule": schedule.determinants(),
            "num_train": gem.num_train,
            "freezing": gem.freezing if scoring and gem.freezing != "exact" else None,
        }

    def departure(self, config: SearchConfig) -> str | None:
        """Describe the freezing rule if it differs from the authors' code; else return None."""
        if config.gem_miner.freezing == "authors":
            return None
        return "its scores were frozen one epoch earlier than in the authors' code, with exact counts despite ties"

    @staticmethod
    def _weights(ctx: LevelContext) -> dict[str, torch.Tensor]:
        """Return w₀: the parameters of θ_init, with all biases outside normalisation layers set to 0."""
        return {
            name: torch.zeros_like(tensor) if is_bias(name) and name not in ctx.norm else tensor
            for name, tensor in ctx.theta_init.params.items()
        }


def is_bias(name: str) -> bool:
    """Return whether a parameter's name is that of a bias."""
    return name.rpartition(".")[2] in ("bias", "in_proj_bias")


def draw_scores(shapes: Mapping[str, torch.Size], init_seed: int) -> dict[str, torch.Tensor]:
    """Draw scores p ~ U[0, 1) for every weight. Each tensor has its own random stream, derived from `init_seed`."""
    scores = {}
    for name, shape in shapes.items():
        generator = np.random.Generator(np.random.Philox(key=derive_seed(init_seed, "scores", name)))
        scores[name] = torch.from_numpy(generator.random(tuple(shape), dtype=np.float32))
    return scores


def effective(weight: torch.Tensor, kept: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    """Return w₀ · q · 1[p > ½]. Pruned weights are +0.0."""
    return torch.where(kept & (score > 0.5), weight, torch.zeros_like(weight))


def choose_images(number: int, sgd_seed: int, num_train: int) -> np.ndarray:
    """Choose `number` of the `num_train` training images at random.

    The choice depends on `sgd_seed` alone. So all ranks, all densities and both trainings use the same images.

    Returns:
        Sorted positions in the training split, int64.

    Raises:
        ValueError: The split has fewer than `number` images.
    """
    if number > num_train:
        raise ValueError(f"gem_miner.num_train is {number}; the training set has {num_train} images")
    generator = np.random.Generator(np.random.Philox(key=derive_seed(sgd_seed, "gem_miner", "images")))
    return np.sort(generator.permutation(num_train)[:number]).astype(np.int64, copy=False)


def num_freezings(epochs: int, every: int) -> int:
    """Return the number of freezings in a score training, ⌊(epochs − 1) / every⌋.

    Raises:
        ValueError: The training is too short for a single freezing.
    """
    if (number := (epochs - 1) // every) < 1:
        raise ValueError(
            f"scores are frozen every {every} epochs, but trained for only {epochs}: train for {every + 1} or more"
        )
    return number


def kept_counts(numel: int, density: float, freezings: int) -> list[int]:
    """Return the number of live weights after each freezing under `freezing` "exact".

    Each freezing keeps ⌊(1 − r) · live⌋ weights, where r is `share(density, freezings)`. At first, `numel` are live.
    """
    counts = []
    for _ in range(freezings):
        numel = int(density ** (1 / freezings) * numel)
        counts.append(numel)
    return counts


def share(density: float, freezings: int) -> float:
    """Return r = 1 − density^(1/freezings), the share of the live scores that each freezing removes."""
    return 1 - math.exp(math.log(density) / freezings)


def most_kept(numel: int, density: float, freezings: int) -> list[int]:
    """Return the number of live weights after each freezing under `freezing` "authors", if all scores differ.

    Each freezing removes ⌈r · live⌉ weights, where r is `share(density, freezings)`. Equal scores only remove more.
    """
    counts = []
    for _ in range(freezings):
        numel -= math.ceil(share(density, freezings) * numel)
        counts.append(numel)
    return counts


def freeze_lowest(scores: Params, mask: Mask, fraction: float) -> Mask:
    """Return the mask without the ⌈fraction · live⌉ lowest live scores, and without scores equal to their highest.

    Raises:
        ValueError: No weight would remain.
    """
    live = torch.cat([scores[name][kept] for name, kept in mask.tensors.items()])
    threshold = live.sort().values[math.ceil(fraction * live.numel()) - 1]
    frozen = Mask({name: kept & (scores[name] > threshold) for name, kept in mask.tensors.items()})
    if frozen.num_remaining == 0:
        raise ValueError(
            f"the lowest {100 * fraction:.1f} % of {live.numel()} scores equal all others, so no weight would remain; "
            "train scores longer, or with another penalty or learning rate"
        )
    return frozen


class ScoreTraining(TrainingHook):
    """The view and the training hook of score training."""

    def __init__(self, weights: Params, scored: Collection[str], density: float, gem: GemMinerConfig) -> None:
        """Start with q = 1 for every weight.

        Args:
            weights: w₀ of all parameters, by name.
            scored: The names of the parameters that have scores.
            density: The target density.
            gem: Gem-Miner's settings.
        """
        self.weights = {name: weights[name] for name in sorted(scored)}
        self.every, self.exact = gem.freeze_every_epochs, gem.freezing == "exact"
        numel = sum(weight.numel() for weight in self.weights.values())
        freezings = num_freezings(gem.score_epochs, gem.freeze_every_epochs)
        self.share, self.counts = share(density, freezings), kept_counts(numel, density, freezings)
        if (self.counts if self.exact else most_kept(numel, density, freezings))[-1] <= 0:
            raise ValueError(f"gem_miner keeps none of {numel:,} weights at density {density:.3g}; choose a higher one")
        self.mask = Mask.dense(self.weights, self.weights)
        """q: marks the weights that are not frozen to 0."""

    def attach(self, model: nn.Module) -> None:
        """Store references to the network's parameters, which hold the scores."""
        params = dict(model.named_parameters())
        self._scores: list[torch.Tensor] = [params[name] for name in self.weights]
        self._saved, self._live, self._effective = (_Flat(self._scores) for _ in range(3))
        self._set_live()

    @property
    def view(self) -> ForwardView:
        """Return the view of one optimizer step.

        Inside the context, the parameters hold the effective weights. On exit, the scores are restored. Gradients with
        respect to effective weights are multiplied by w₀ · q, which gives the gradients with respect to p.
        """
        return self._at

    @contextmanager
    def _at(self, alpha: float) -> Iterator[None]:
        self._put_effective_()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._scores, self._saved.views)
        grads = [score.grad for score in self._scores if score.grad is not None]
        if grads:
            torch._foreach_mul_(grads, self._live.views)

    @torch.no_grad()
    def after_step(self, epoch: int, steps: int) -> None:
        """Clip p to [0, 1]."""
        torch._foreach_clamp_min_(self._scores, 0.0)
        torch._foreach_clamp_max_(self._scores, 1.0)

    def after_epoch(self, epoch: int) -> None:
        """Set q = 0 for the lowest scores after every `freeze_every_epochs` epochs."""
        # The authors count epochs from 0, and freeze after every multiple except 0.
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
        """Return a copy of the current p by name, on the CPU."""
        return {n: s.detach().cpu().clone() for n, s in zip(self.weights, self._scores, strict=True)}

    def finish(self, mask: Mask) -> Mask:
        """Replace the scores in the network by the effective weights, and return q as the mask."""
        self._trained = self.scores
        self._put_effective_()
        del self._scores, self._saved, self._live, self._effective  # free device memory for fine-tuning
        return self.mask

    def networks(self, trained: Checkpoint) -> dict[str, Checkpoint]:
        """Return the trained scores as a second checkpoint of the run."""
        return {SCORES: Checkpoint(self._trained, {}, trained.level, trained.epochs, trained.level_digest)}

    def state(self) -> dict[str, torch.Tensor]:
        """Return a copy of q."""
        return {name: kept.clone() for name, kept in self.mask.tensors.items()}

    def restore_(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore q when a training resumes."""
        self.mask = Mask(dict(tensors))
        self._set_live()

    def _set_live(self) -> None:
        """Compute w₀ · q in the memory layout of the scores."""
        for (name, weight), view in zip(self.weights.items(), self._live.views, strict=True):
            view.copy_(weight * self.mask.tensors[name])

    @torch.no_grad()
    def _put_effective_(self) -> None:
        """Save the scores, and replace them by the effective weights, in five kernels for all layers."""
        torch._foreach_copy_(self._saved.views, self._scores)
        live = self._live.flat
        torch.where(self._saved.flat > 0.5, live, live.new_zeros(()), out=self._effective.flat)
        torch._foreach_copy_(self._scores, self._effective.views)


class _Flat:
    """One tensor with room for all tensors of a list, so that an operation on all of them is one kernel."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        """Allocate zeros. `views` has the shapes and memory layouts of `tensors`, which must be dense."""
        self.flat = tensors[0].new_zeros(sum(tensor.numel() for tensor in tensors))
        starts = accumulate((tensor.numel() for tensor in tensors), initial=0)
        self.views = [
            self.flat.as_strided(tensor.shape, tensor.stride(), start)
            for tensor, start in zip(tensors, starts, strict=False)
        ]
