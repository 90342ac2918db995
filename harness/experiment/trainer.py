"""One training and its evaluation: 𝒜(θ ⊙ m, u), from a start point to a trained run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from harness.checkpoint import Checkpoint
from harness.common.digest import sha256_tensors
from harness.common.logging import progress
from harness.common.machine import return_freed_memory, sampled_load
from harness.common.seeds import SgdNoise
from harness.config import OptimConfig, Schedule
from harness.experiment.experiment import Experiment
from harness.lineage.nodes.record import ERROR_BY_EPOCH
from harness.masks import Mask
from harness.pruning import ForwardView, NormState, StartPoint, TrainingHook
from harness.pruning.method import plain_view
from harness.runs.run import Measurements, RunDescription, TrainedRun, layer_table
from harness.runs.state_saver import StateSaver
from harness.training.batchnorm import reestimate_batchnorm
from harness.training.compiled import CompilingProgress
from harness.training.evaluate import error_so_far, evaluate
from harness.training.feed import TrainFeed
from harness.training.loop import EpochReport, train

BN_IMAGES = 10_000
"""Training images for the re-estimation of BatchNorm statistics."""


@dataclass(frozen=True)
class Trainer:
    """Runs the trainings of an experiment."""

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
        """Train from a start point, then evaluate.

        Args:
            description: The run to make. The checkpoint gets its key and level.
            saver: Saves and resumes the training. Its `measured` receives the metrics.
            start: θ ⊙ m and buffers.
            schedule: Epochs and learning rate.
            noise: u.
            psi_init: θ_init. The view may use its norm parameters.
            view: Takes ψ and ψ_init. Returns the forward view of each step.
            metrics: Fields of EpochReport to log in addition to the usual ones.
            reestimate: Evaluate with re-estimated BatchNorm statistics, too.
            optim: Optimizer settings. None means those of the experiment.
            hook: Method hook. It may return another mask and additional networks.
            frozen: Names of parameters that are not trained.
            choose: Takes the number of training images and returns the positions to use. None means all images.
        """
        experiment, world, measured = self.experiment, self.experiment.world, saver.measured
        if not all(kept.any() for kept in start.mask.tensors.values()):
            experiment.archive.check_weights(description.name, start.mask)
        feed = experiment.train_feed
        if choose is not None:
            feed = feed.among(choose(experiment.source.num_train))

        # Phase: load the start point, and give the method ψ and ψ_init.
        model = experiment.network()
        Checkpoint(start.params, start.buffers, 0, 0, "").load_into_(model)
        params = dict(model.named_parameters())
        for name in frozen:
            params[name].requires_grad_(False)
        norm = sorted(experiment.partition.norm)
        state = NormState([params[name] for name in norm], [psi_init[name].to(world.device) for name in norm])
        signs = {name: (start.weights or start.params)[name].sign() for name in start.mask.tensors}
        flipped = flipped_signs(params, signs, start.mask) if world.is_main and start.weights is None else None
        begin = divmod(start.begin_steps, feed.steps_per_epoch)
        epochs = schedule.epochs - begin[0]  # an epoch that starts half-way counts
        step_view, every = view(state), experiment.config.evaluate_every

        def on_epoch(report: EpochReport) -> None:
            usual = ("train_loss", "train_error_percent", "lr", "images_per_second", *metrics)
            values = {name: getattr(report, name) for name in usual}
            if flipped is not None:
                values["flipped_signs"] = flipped()
            done = report.epoch - begin[0] + 1
            if every and done % every == 0 and done < epochs:
                # α = 1 gives ψ itself. The view of score training replaces scores by weights.
                with world.unwatched(), step_view(1.0):
                    test = experiment.test_feed
                    values[ERROR_BY_EPOCH] = error_so_far(model, test, world, num_images=test.num_images)
            taken = [samples.popleft() for _ in range(len(samples))]
            measured.log(start.epochs + done, values, taken)
            tested = [metric.value for metric in measured.metrics if metric.name == ERROR_BY_EPOCH][-1:]
            bar.postfix = ", ".join([f"loss {report.train_loss:.3g}", *(f"test error {one:.2f} %" for one in tested)])

        if experiment.probe.due:
            experiment.probe.run(experiment, feed.loader, noise)

        # Phase: train. Rank 0 shows progress and samples the machine's load.
        steps, shown = schedule.epochs * feed.steps_per_epoch, experiment.shows_progress
        with (
            progress(
                description.name, steps, "steps", done=start.begin_steps, shown=shown, epochs=schedule.epochs
            ) as bar,
            sampled_load(measured.started_ms / 1000, wanted=world.is_main) as samples,
        ):
            counted = bar if experiment.config.compile == "no" else CompilingProgress(bar)
            train(
                model,
                world=world,
                batches=feed,
                noise=noise,
                optim=optim or experiment.config.optim,
                schedule=schedule,
                mask=start.mask,
                view=step_view,
                accumulation_steps=experiment.config.accumulation_steps,
                begin=begin,
                label=description.name,
                on_epoch=on_epoch,
                on_steps=counted.update,
                saver=saver,
                hook=hook,
            )

        # Phase: make the checkpoint. BatchNorm statistics differ between ranks, so rank 0's are used.
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
        for name in frozen:
            params[name].requires_grad_(True)  # otherwise a compiled network needs one more graph for evaluation

        # Phase: evaluate. Batches of another size do not fit into the memory that the training left.
        return_freed_memory()
        spent = start.epochs if start.epochs_spent is None else start.epochs_spent
        measured.log(checkpoint.epochs, {"epochs_total": spent + epochs})
        correct = self._evaluate(model, checkpoint.epochs, measured, noise, feed if reestimate else None)
        return_freed_memory()
        layers = layer_table(checkpoint.params, signs, mask)
        return TrainedRun(checkpoint, mask, measured, start.digest, layers, networks, correct)

    def _evaluate(
        self, model: torch.nn.Module, step: int, measured: Measurements, noise: SgdNoise, train_feed: TrainFeed | None
    ) -> dict[str, torch.Tensor]:
        """Log error and loss on the test split.

        With `train_feed`, re-estimate BatchNorm statistics first, and also log the error before.

        Returns:
            Correct answers, bool [N], by the name of the evaluation.
        """
        experiment, world = self.experiment, self.experiment.world
        feed = experiment.test_feed
        found = evaluate(model, feed, world, num_images=feed.num_images)
        correct = {}
        if train_feed is not None:
            # The running statistics of an AWS level come from forward passes with random α, not from ψ itself.
            measured_before, correct["test_recorded_bn"] = found.error_percent, found.correct_N
            steps = -(-BN_IMAGES // experiment.config.global_batch_size)
            order = SgdNoise(noise.sgd_seed, ("batchnorm",))
            steps = min(steps, train_feed.steps_per_epoch)
            batches = train_feed.epoch(order, 0, num_steps=steps)
            with (
                progress("BatchNorm statistics", steps, "batches", shown=experiment.shows_progress) as bar,
                world.autocast(),
            ):
                images = ((images_NCHW, bar.update())[0] for images_NCHW, _ in batches)
                reestimate_batchnorm(model, images, "cumulative")
            if world.size > 1:  # each rank saw only its share of the images
                with torch.no_grad():
                    for buffer in (buffer for buffer in model.buffers() if buffer.is_floating_point()):
                        buffer.copy_(world.sum(buffer) / world.size)
            found = evaluate(model, feed, world, num_images=feed.num_images)
            measured.log(step, {"test_error_percent_recorded_bn": measured_before})
        measured.log(step, {"test_error_percent": found.error_percent, "test_loss": found.loss})
        return correct | {"test": found.correct_N}


def flipped_signs(
    params: Mapping[str, torch.nn.Parameter], signs: Mapping[str, torch.Tensor], mask: Mask
) -> Callable[[], float]:
    """Return a function that measures the share of kept weights whose sign differs from the start, 0..1.

    It counts on the network's device and fetches one number.

    Args:
        params: Parameters of the network, which change in place while it trains.
        signs: Signs of the prunable tensors at the start, −1, 0 or 1.
        mask: m.
    """
    # The copies have the layout of the weights. A comparison over mismatched strides takes twice the time.
    like = partial(torch.empty_like, requires_grad=False)
    weights = [params[name].detach() for name in signs]
    starts = [like(params[name], dtype=torch.int8).copy_(sign) for name, sign in signs.items()]
    kept = [like(params[name], dtype=torch.bool).copy_(mask.tensors[name]) for name in signs]
    tensors, num_kept = list(zip(weights, starts, kept, strict=True)), max(mask.num_remaining, 1)
    return lambda: (
        float(torch.stack([((now.sign() != then) & own).sum() for now, then, own in tensors]).sum()) / num_kept
    )


def batch_gradients(experiment: Experiment, params: Mapping[str, torch.Tensor], mask: Mask) -> dict[str, torch.Tensor]:
    """Return the gradients of the mean loss of one global batch at θ ⊙ m.

    The batch is the first one of the stream "ranking" of sgd_seed, augmented as in training. The gradients use float32
    and the micro-batches of training. BatchNorm uses the statistics of each micro-batch on each rank.

    Args:
        experiment: Network, data and processes. All ranks call this.
        params: θ, all parameters by name.
        mask: m. Gradients of pruned weights are those at weight 0.

    Returns:
        One CPU tensor for each parameter: the mean over ranks.
    """
    # Phase: load θ ⊙ m into a fresh copy of the network.
    world = experiment.world
    model = deepcopy(experiment.blank).to(world.device).train()
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in params.items():
            own[name].copy_(tensor)
        mask.apply_({name: own[name] for name in mask.tensors})

    # Phase: go through the batch, and average over ranks.
    noise, parts = SgdNoise(experiment.config.sgd_seed, ("ranking",)), experiment.config.accumulation_steps
    images_NCHW, labels_N = next(experiment.train_feed.epoch(noise, 0, num_steps=1))
    torch.manual_seed(noise.key("dropout", 0) >> 1)
    for images, labels in zip(images_NCHW.tensor_split(parts), labels_N.tensor_split(parts), strict=True):
        (F.cross_entropy(model(images), labels) * (len(labels) / len(labels_N))).backward()
    grads = {name: torch.zeros_like(param) if param.grad is None else param.grad for name, param in own.items()}
    return {name: (world.sum(grad) / world.size).cpu() for name, grad in grads.items()}
