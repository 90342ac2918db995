"""The optimizer loop that all trainings share: warm-up, pruning levels and final trainings."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F

from harness.common.files import reach
from harness.common.seeds import SgdNoise, alpha_mean
from harness.config import OptimConfig, Schedule
from harness.distributed.heartbeat import COMPUTING, ENDING, MEETING, READING
from harness.distributed.stop import StoppedError
from harness.distributed.world import World
from harness.masks import Mask
from harness.pruning import ForwardView, TrainingHook
from harness.training.resume import TALLY, SavesStates, TrainingState, capture, hook_state, restore_

MEETING_SECONDS = 1.0
MEETING_STEPS = 50
"""Interval between two meetings of the ranks: about MEETING_SECONDS, and at most MEETING_STEPS."""


class Batches(Protocol):
    """The interface of a training loader. It yields this rank's part of each global batch, with normalised images."""

    @property
    def steps_per_epoch(self) -> int: ...

    def epoch(
        self, noise: SgdNoise, epoch: int, skip_steps: int = 0
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]: ...


@dataclass(frozen=True)
class EpochReport:
    """The measurements of one epoch, over all ranks."""

    epoch: int
    train_loss: float
    train_error_percent: float
    lr: float
    alpha_mean: float
    """Mean of the α drawn for the epoch's steps. They are drawn even for methods that do not use them."""
    images_per_second: float
    finished_ms: int


class NonFiniteLossError(ArithmeticError):
    """The training loss became NaN or infinite."""


class Remask:
    """Apply θ ← θ ⊙ m after an optimizer step, as one fused multiply over the masked parameters."""

    def __init__(self, params: dict[str, torch.nn.Parameter], mask: Mask) -> None:
        names = [name for name, kept in mask.tensors.items() if not bool(kept.all())]
        self._params: list[torch.Tensor] = [params[name] for name in names]
        # Masks have the parameters' memory layout: a multiply with mismatched strides takes twice as long.
        self._masks = [torch.empty_like(params[name], requires_grad=False).copy_(mask.tensors[name]) for name in names]

    @torch.no_grad()
    def params_(self) -> None:
        """Zero the pruned weights."""
        if self._params:
            torch._foreach_mul_(self._params, self._masks)

    @torch.no_grad()
    def check(self, label: str) -> None:
        """Raise ValueError if a pruned weight is not 0, because the saved state then belongs to another mask."""
        pairs = zip(self._params, self._masks, strict=True)
        alive = sum(int((param * (1 - kept)).count_nonzero()) for param, kept in pairs)
        if alive:
            raise ValueError(
                f"{label}: the interrupted training had another mask; {alive} weights pruned now were trained. "
                "The importance of weights depends on the device and on the number of threads. Remove the directory "
                "of the unfinished run to train the level from its start"
            )

    @torch.no_grad()
    def grads_(self) -> None:
        """Zero the gradients of pruned weights, so that gradient clipping uses the norm of the sparse network."""
        if self._params:
            pairs = [(p.grad, m) for p, m in zip(self._params, self._masks, strict=True) if p.grad is not None]
            if pairs:
                torch._foreach_mul_([grad for grad, _ in pairs], [kept for _, kept in pairs])


def build_optimizer(params: Iterable[torch.nn.Parameter], config: OptimConfig, *, fused: bool) -> torch.optim.Optimizer:
    """Return a new optimizer. Weight decay is coupled L2 on all parameters (paper, section 4.1)."""
    if config.name not in ("sgd", "adam"):
        raise ValueError(f"unknown optimizer {config.name!r}; known: adam, sgd")
    if config.name == "sgd":
        return torch.optim.SGD(
            params, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=fused
        )
    return torch.optim.Adam(params, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=fused)


def train(
    model: torch.nn.Module,
    *,
    world: World,
    batches: Batches,
    noise: SgdNoise,
    optim: OptimConfig,
    schedule: Schedule,
    mask: Mask,
    view: ForwardView,
    accumulation_steps: int = 1,
    begin: tuple[int, int] = (0, 0),
    label: str,
    on_epoch: Callable[[EpochReport], None],
    on_steps: Callable[[int], object] = lambda steps: None,
    saver: SavesStates | None = None,
    hook: TrainingHook | None = None,
) -> None:
    """Train `model` in place under `mask`: the paper's 𝒜(θ, u) with u = `noise`.

    Args:
        view: `view(α)` is a context manager around the forward and backward passes of a step. α is drawn once per
            step and is equal on all ranks.
        begin: The (epoch, step) of the schedule and of u at which the training begins.
        label: The name of the training in messages.
        on_epoch: Called after each epoch.
        on_steps: Called about once a second with the number of steps just done. The first call has the number of steps
            already done when a training resumes.
        saver: Loads the state to resume from, and saves new states. A resumed training has the same bits as an
            uninterrupted one.
        hook: Callbacks of the pruning method.

    Raises:
        NonFiniteLossError: The loss is NaN or infinite. Raised at most 50 steps later. The message names the first
            such step.
        StoppedError: A rank was asked to stop. All ranks have saved their state after the same step.
    """
    # Phase: build the optimizer, and restore the state of an interrupted training.
    params = dict(model.named_parameters())
    remask = Remask(params, mask)
    # If the first fp16 step overflows, a fused SGD leaves its momentum uninitialised and uses it in the second step.
    fused = world.device.type == "cuda" and not (optim.name == "sgd" and world.precision == "fp16")
    trained = [param for param in params.values() if param.requires_grad]
    optimizer = build_optimizer(trained, optim, fused=fused)
    state = saver.load() if saver else None
    if state is not None:
        restore_(model, optimizer, state.tensors)
        remask.check(label)
    remask.params_()
    if hook is not None:
        hook.attach(model)
        if state is not None:
            hook.restore_(hook_state(state.tensors))

    # Phase: wrap the model, and find the epoch and step to start from.
    wrapped = world.prepare(model, state.scaler if state else None)
    wrapped.train()
    several = world.size > 1
    step = TrainStep(wrapped, world, optimizer, remask, optim.max_grad_norm, accumulation_steps, unrehearsed=several)
    most_steps = min(MEETING_STEPS, (saver.most_steps if saver else None) or MEETING_STEPS)
    meeting = _Meeting(world, saver, label, most_steps)
    first, skipped = (state.epoch, state.step) if state else begin
    per_epoch = batches.steps_per_epoch
    on_steps((first - begin[0]) * per_epoch + skipped - begin[1])

    # Phase: train. The ranks meet about once a second.
    with world.watching(label) as place:
        for epoch in range(first, schedule.epochs):
            lr = optim.lr * schedule.lr_factor(epoch)
            for group in optimizer.param_groups:
                group["lr"] = lr
            alphas = noise.alphas(epoch, per_epoch)
            tally = _Tally(world, state)
            state = None
            taken, skipped = skipped, 0
            place.at = epoch, taken, READING
            for index, (images_NCHW, labels_N) in enumerate(batches.epoch(noise, epoch, skip_steps=taken), start=taken):
                place.at = epoch, index, COMPUTING
                if step.unrehearsed:
                    step.rehearse(images_NCHW, labels_N)
                # Dropout and drop-connect belong to u. Seeding every step makes them equal in a resumed training.
                world.seed(noise.key("dropout", epoch, index, world.rank) >> 1)
                with view(float(alphas[index])):
                    loss, num_correct = step.backward(images_NCHW, labels_N)
                step.update()
                if hook is not None:
                    hook.after_step(epoch, index + 1)
                reach("step")
                tally.steps.append((index, len(labels_N), loss, num_correct))
                place.at, place.begun = (epoch, index, MEETING), True
                if meeting.due(index, per_epoch):
                    on_steps(len(tally.steps))
                    meeting.hold(epoch, index + 1, tally, lambda: capture(model, optimizer, hook))
                place.at = epoch, index + 1, READING
            place.at = epoch, per_epoch - 1, ENDING
            if hook is not None:
                hook.after_epoch(epoch)
            on_epoch(tally.report(epoch, lr, alpha_mean(alphas)))


@dataclass
class _Meeting:
    """A periodic meeting of all ranks, about once a second.

    The ranks agree whether the loss is finite, whether to save and whether to stop.
    """

    world: World
    saver: SavesStates | None
    label: str
    most_steps: int
    """Upper bound of the steps between two meetings."""
    steps_until: int = 1
    gap: int = 1
    held_at: float = field(default_factory=time.perf_counter)

    def due(self, index: int, steps_per_epoch: int) -> bool:
        """Return whether the ranks meet after this step. All ranks get the same answer without communication."""
        self.steps_until -= 1
        return self.steps_until <= 0 or index + 1 == steps_per_epoch

    def hold(self, epoch: int, steps: int, tally: _Tally, tensors: Callable[[], dict[str, torch.Tensor]]) -> None:
        """Meet after `steps` steps of `epoch`. Then save, stop or raise as agreed."""
        # Phase: add up the steps since the last meeting. Here the host waits for the device.
        tally.fold()

        # Phase: agree on the first bad step, saving, stopping and the next meeting, by one minimum over ranks.
        save = self.saver is not None and self.world.is_main and self.saver.due(epoch, steps)
        stop = self.world.stop.reason
        seconds = (time.perf_counter() - self.held_at) / max(self.gap - self.steps_until, 1)
        gap = min(self.most_steps, max(1, int(MEETING_SECONDS / max(seconds, 1e-6))))
        mine = torch.tensor([tally.first_bad, -float(save), -float(stop is not None), gap], dtype=torch.float64)
        first_bad, minus_save, minus_stop, agreed_gap = self.world.min(mine).tolist()
        self.steps_until = self.gap = int(agreed_gap)
        self.held_at = time.perf_counter()

        # Phase: act on the agreement.
        if first_bad != torch.inf:
            raise NonFiniteLossError(
                f"{self.label}: the loss is not finite from epoch {epoch}, step {int(first_bad)} on; "
                "lower --optim.lr, clip with --optim.max-grad-norm, or use --precision no"
            )
        if self.saver is not None and (minus_save < 0 or minus_stop < 0):
            sums = self.world.sum(torch.tensor(tally.sums, dtype=torch.float64))
            held = tensors() | {TALLY: sums} if self.world.is_main else {}
            self.saver.save(
                TrainingState(
                    epoch,
                    steps,
                    time.perf_counter() - tally.started,
                    held,
                    self.world.scaler_state(),
                    is_last=minus_stop < 0,
                )
            )
        if minus_stop < 0:
            raise StoppedError(stop or "another process was asked to stop")


@dataclass
class TrainStep:
    """One optimizer step: forward and backward passes of all micro-batches, update and re-masking."""

    model: torch.nn.Module
    world: World
    optimizer: torch.optim.Optimizer
    remask: Remask
    max_grad_norm: float | None
    accumulation_steps: int
    unrehearsed: bool
    """Whether `rehearse` must still run before the first step."""

    def rehearse(self, images_NCHW: torch.Tensor, labels_N: torch.Tensor) -> None:
        """Run one forward and backward pass and discard its gradients, before the first step on several ranks.

        DDP rebuilds its gradient buckets after its first backward pass. This changes the order of summation. A resumed
        training has a new DDP object. Without this pass, its first step would have other bits than the same step of an
        uninterrupted training.
        """
        self.unrehearsed = False
        buffers = list(self.model.buffers())
        saved = [buffer.clone() for buffer in buffers]
        self.backward(images_NCHW, labels_N)
        self.optimizer.zero_grad(set_to_none=True)
        for buffer, value in zip(buffers, saved, strict=True):
            buffer.copy_(value)

    def backward(self, images_NCHW: torch.Tensor, labels_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the forward and backward passes of all micro-batches.

        Returns:
            The batch's mean loss and number of correct predictions, both on the device.
        """
        num_images, parts = len(labels_N), self.accumulation_steps
        whole = parts == 1
        image_parts = [images_NCHW] if whole else images_NCHW.tensor_split(parts)
        label_parts = [labels_N] if whole else labels_N.tensor_split(parts)
        losses, corrects = [], []
        for part, (images, labels) in enumerate(zip(image_parts, label_parts, strict=True)):
            with nullcontext() if part == parts - 1 else self.world.no_sync(self.model):
                with self.world.autocast():
                    logits_NK = self.model(images)
                    # float32 under mixed precision, too
                    loss = F.cross_entropy(logits_NK.to(torch.get_default_dtype()), labels)
                loss = loss if whole else loss * (len(labels) / num_images)
                self.world.backward(loss)
            losses.append(loss.detach())
            corrects.append((logits_NK.detach().argmax(1) == labels).sum())
        if whole:
            return losses[0], corrects[0]
        return sum(losses, start=torch.zeros_like(losses[0])), sum(corrects, start=torch.zeros_like(corrects[0]))

    def update(self) -> None:
        if self.max_grad_norm is not None:
            self.remask.grads_()
            self.world.clip(self.optimizer, list(self.model.parameters()), self.max_grad_norm)
        self.world.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        self.remask.params_()


class _Tally:
    """Running sums of an epoch, on the CPU."""

    def __init__(self, world: World, state: TrainingState | None) -> None:
        self.world = world
        self.first_bad = math.inf
        self.sums = [0.0, 0.0, 0.0]  # loss·images, correct, images
        self.started = time.perf_counter()  # start of the epoch, shifted as if it had never been interrupted
        self.steps: list[tuple[int, int, torch.Tensor, torch.Tensor]] = []
        """Index, number of images, mean loss and number of correct predictions of each step since the last `fold`.

        The tensors stay on the device, so that steps do not synchronise with it.
        """
        if state is not None:
            self.started -= state.seconds
            if world.is_main:  # the saved sums cover all ranks, so only one rank adds them
                self.sums = state.tensors[TALLY].tolist()

    def fold(self) -> None:
        """Add the stored steps one after the other, so that the sums do not depend on the interval of the meetings."""
        indices, images, losses, corrects = zip(*self.steps, strict=True)
        self.steps.clear()
        losses_S = torch.stack(losses).cpu()
        weighted_S = losses_S * torch.tensor(images)  # in float32
        for index, loss, weighted in zip(indices, losses_S.tolist(), weighted_S.tolist(), strict=True):
            if not math.isfinite(loss):
                self.first_bad = min(self.first_bad, index)
            self.sums[0] += weighted
        self.sums[1] += int(torch.stack(corrects).sum())
        self.sums[2] += sum(images)

    def report(self, epoch: int, lr: float, mean_alpha: float) -> EpochReport:
        loss_sum, correct, images = self.world.sum(torch.tensor(self.sums, dtype=torch.float64)).tolist()
        images = max(images, 1.0)
        return EpochReport(
            epoch=epoch,
            train_loss=loss_sum / images,
            train_error_percent=100 * (1 - correct / images),
            lr=lr,
            alpha_mean=mean_alpha,
            images_per_second=images / (time.perf_counter() - self.started),
            finished_ms=int(time.time() * 1000),
        )
