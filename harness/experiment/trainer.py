"""One training from a start point to a trained run: 𝒜(θ ⊙ m, u), then its evaluation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from harness.checkpoint import Checkpoint
from harness.common.digest import sha256_tensors
from harness.common.machine import sampled_load
from harness.common.seeds import SgdNoise
from harness.config import OptimConfig, Schedule
from harness.experiment.experiment import Experiment
from harness.masks import Mask
from harness.pruning import ForwardView, NormState, StartPoint, TrainingHook
from harness.pruning.method import plain_view
from harness.runs.run import Measurements, RunDescription, TrainedRun, layer_table
from harness.runs.state_saver import StateSaver
from harness.training.batchnorm import reestimate_batchnorm
from harness.training.evaluate import evaluate
from harness.training.feed import TrainFeed
from harness.training.loop import EpochReport, train

BN_IMAGES = 10_000
"""Training images that BatchNorm statistics are re-estimated from."""


@dataclass(frozen=True)
class Trainer:
    """Trains the network of an experiment."""

    experiment: Experiment

    def train(
        self,
        description: RunDescription,
        saver: StateSaver,
        start: StartPoint,
        *,
        schedule: Schedule,
        noise: SgdNoise,
        psi_init: Mapping[str, torch.Tensor],
        view: Callable[[NormState], ForwardView] = lambda norm: plain_view,
        metrics: Collection[str] = (),
        reestimate: bool = False,
        optim: OptimConfig | None = None,
        hook: TrainingHook | None = None,
        frozen: Collection[str] = (),
        choose: Callable[[int], np.ndarray] | None = None,
    ) -> TrainedRun:
        """Train from `start` and evaluate.

        Args:
            description: The run that this training makes; gives the checkpoint its key and level.
            saver: Resumes an interrupted training; its `measured` gets the measurements.
            start: θ ⊙ m and buffers.
            schedule: Epochs and learning rate.
            noise: u.
            psi_init: θ_init, whose normalisation parameters the view may use.
            view: Takes ψ and ψ_init; returns the view of each step.
            metrics: Fields of EpochReport to log beside the usual ones.
            reestimate: Evaluate with fresh BatchNorm statistics, too.
            optim: Instead of the experiment's optimizer.
            hook: Goes along with the training; may give another mask and more networks to keep.
            frozen: Names of parameters that are not trained.
            choose: Takes the number of training images and returns the positions of those to use; None: all.
        """
        experiment, world, measured = self.experiment, self.experiment.world, saver.measured
        if not all(kept.any() for kept in start.mask.tensors.values()):
            experiment.archive.check_weights(description.name, start.mask)
        feed = experiment.train_feed
        if choose is not None:
            feed = feed.among(choose(experiment.source.num_train))

        # Put the network at the start point, and let the method see ψ and ψ_init.
        model = deepcopy(experiment.blank).to(world.device)
        Checkpoint(start.params, start.buffers, 0, 0, "").load_into_(model)
        params = dict(model.named_parameters())
        for name in frozen:
            params[name].requires_grad_(False)
        norm = sorted(experiment.partition.norm)
        state = NormState([params[name] for name in norm], [psi_init[name].to(world.device) for name in norm])
        signs = {name: (start.weights or start.params)[name].sign() for name in start.mask.tensors}
        flipped = _FlippedSigns(params, signs, start.mask) if world.is_main and start.weights is None else None
        begin = divmod(start.begin_steps, feed.steps_per_epoch)
        epochs = schedule.epochs - begin[0]  # one that is begun half-way counts

        def on_epoch(report: EpochReport) -> None:
            usual = ("train_loss", "train_error_percent", "lr", "images_per_second", *metrics)
            values = {name: getattr(report, name) for name in usual}
            if flipped is not None:
                values["flipped_signs"] = flipped.share()
            measured.log(start.epochs + report.epoch - begin[0] + 1, values, samples())

        # Train, with a progress bar and the load of the machine on rank 0.
        bar = tqdm(
            total=schedule.epochs * feed.steps_per_epoch,
            initial=start.begin_steps,
            desc=description.name,
            unit="step",
            leave=False,
            disable=not experiment.shows_progress,
        )
        with bar, sampled_load(measured.started_ms / 1000, wanted=world.is_main) as samples:
            train(
                model,
                world=world,
                batches=feed,
                noise=noise,
                optim=optim or experiment.config.optim,
                schedule=schedule,
                mask=start.mask,
                view=view(state),
                accumulation_steps=experiment.config.accumulation_steps,
                begin=begin,
                label=description.name,
                on_epoch=on_epoch,
                on_steps=bar.update,
                saver=saver,
                hook=hook,
            )

        # Keep it, on several ranks with rank 0's BatchNorm statistics: those of each rank differ.
        mask = hook.finish(start.mask) if hook else start.mask
        if hook and not all(kept.any() for kept in mask.tensors.values()):
            experiment.archive.check_weights(description.name, mask)
        trained, level, key = start.epochs + epochs, description.level, description.key
        checkpoint = Checkpoint.of(model, level=level, epochs=trained, level_digest=key)
        networks = hook.networks(checkpoint) if hook else {}
        networks |= {name: Checkpoint(dict(held), {}, level, trained, key) for name, held in start.keeps.items()}
        if world.size > 1:
            checkpoint = replace(checkpoint, buffers=world.share(checkpoint.buffers))
            networks = {name: replace(held, buffers=world.share(held.buffers)) for name, held in networks.items()}
            world.require_equal(f"parameters of {description.name}", sha256_tensors(checkpoint.params))
        checkpoint.load_into_(model)

        # Measure it.
        spent = start.epochs if start.epochs_spent is None else start.epochs_spent
        measured.log(checkpoint.epochs, {"epochs_total": spent + epochs})
        correct = self._evaluate(model, checkpoint.epochs, measured, noise, feed if reestimate else None)
        layers = layer_table(checkpoint.params, signs, mask)
        return TrainedRun(checkpoint, mask, measured, start.digest, layers, networks, correct)

    def _evaluate(
        self, model: torch.nn.Module, step: int, measured: Measurements, noise: SgdNoise, train_feed: TrainFeed | None
    ) -> dict[str, torch.Tensor]:
        """Log error and loss on the test split; given training images, of fresh BatchNorm statistics from them.

        Return which images were right, by evaluation.
        """
        experiment, world = self.experiment, self.experiment.world
        feed = experiment.test_feed
        found = evaluate(model, feed, world, num_images=feed.num_images)
        correct = {}
        if train_feed is not None:
            # an AWS level's running statistics were gathered under random α; they are not those of ψ
            measured_before, correct["test_recorded_bn"] = found.error_percent, found.correct_N
            steps = -(-BN_IMAGES // experiment.config.global_batch_size)
            order = SgdNoise(noise.sgd_seed, ("batchnorm",))
            batches = train_feed.epoch(order, 0, num_steps=min(steps, train_feed.steps_per_epoch))
            with world.autocast():
                reestimate_batchnorm(model, (images_NCHW for images_NCHW, _ in batches), "cumulative")
            if world.size > 1:  # every rank saw its share of the images
                with torch.no_grad():
                    for buffer in (buffer for buffer in model.buffers() if buffer.is_floating_point()):
                        buffer.copy_(world.sum(buffer) / world.size)
            found = evaluate(model, feed, world, num_images=feed.num_images)
            measured.log(step, {"test_error_percent_recorded_bn": measured_before})
        measured.log(step, {"test_error_percent": found.error_percent, "test_loss": found.loss})
        return correct | {"test": found.correct_N}


class _FlippedSigns:
    """Counts, on the network's device, the kept weights whose sign differs from the start: one number is fetched."""

    def __init__(self, params: Mapping[str, torch.nn.Parameter], signs: Mapping[str, torch.Tensor], mask: Mask) -> None:
        self._weights: list[torch.Tensor] = [params[name] for name in signs]
        # laid out like the weights: a comparison over mismatched strides takes twice the time
        like = partial(torch.empty_like, requires_grad=False)
        self._signs = [like(params[name], dtype=torch.int8).copy_(sign) for name, sign in signs.items()]
        self._kept = [like(params[name], dtype=torch.bool).copy_(mask.tensors[name]) for name in signs]
        self._num_kept = max(mask.num_remaining, 1)

    @torch.no_grad()
    def share(self) -> float:
        """Return the share of the kept weights, 0..1."""
        differ = [
            ((weight.sign() != sign) & kept).sum()
            for weight, sign, kept in zip(self._weights, self._signs, self._kept, strict=True)
        ]
        return float(torch.stack(differ).sum()) / self._num_kept


def batch_gradients(experiment: Experiment, params: Mapping[str, torch.Tensor], mask: Mask) -> dict[str, torch.Tensor]:
    """Return the gradients of the mean loss of one global batch at θ ⊙ m.

    The batch is the first one of the sgd_seed's stream "ranking", augmented as in training. Computed without mixed
    precision, in as many micro-batches as in training; BatchNorm uses the statistics of each, on each rank.

    Args:
        experiment: Network, data and processes; all ranks call this.
        params: θ, all parameters by name.
        mask: m; gradients of pruned weights are those at weight 0.

    Returns:
        A tensor for each parameter, on the CPU, the mean over ranks.
    """
    world = experiment.world
    model = deepcopy(experiment.blank).to(world.device).train()
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in params.items():
            own[name].copy_(tensor)
        mask.apply_({name: own[name] for name in mask.tensors})
    noise, parts = SgdNoise(experiment.config.sgd_seed, ("ranking",)), experiment.config.accumulation_steps
    images_NCHW, labels_N = next(experiment.train_feed.epoch(noise, 0, num_steps=1))
    torch.manual_seed(noise.key("dropout", 0) >> 1)
    for images, labels in zip(images_NCHW.tensor_split(parts), labels_N.tensor_split(parts), strict=True):
        (F.cross_entropy(model(images), labels) * (len(labels) / len(labels_N))).backward()
    grads = {name: torch.zeros_like(param) if param.grad is None else param.grad for name, param in own.items()}
    return {name: (world.sum(grad) / world.size).cpu() for name, grad in grads.items()}
