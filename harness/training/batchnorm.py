"""BatchNorm running statistics taken anew from data, for networks whose recorded ones mean nothing.

Three kinds of network need it: an interpolated one (its activations are those of neither end), a level of AWS (its
statistics were gathered under random α, not under ψ) and one that was just masked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.distributed.ranks import ONE_PROCESS, Ranks, sum_over_ranks

BatchNormConvention = Literal["cumulative", "ema"]

_EMA_MOMENTUM = 0.1  # torch's default for BatchNorm, and what the paper's scripts leave it at


def batchnorm_layers(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers of `model` that keep running statistics (subclasses and SyncBatchNorm included)."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def reestimate_batchnorm(
    model: nn.Module,
    batches: Iterable[Tensor],
    convention: BatchNormConvention,
    *,
    ranks: Ranks = ONE_PROCESS,
    num_batches: int | None = None,
) -> int:
    """Replace BatchNorm's running mean and variance by those of `batches`; returns the number of batches used.

    `batches` are normalised images, float NCHW, on the model's device. Method section 6; the conventions are

    * "cumulative": forget the old statistics and take the plain mean over batches of each batch's mean and unbiased
      variance. Every batch weighs the same whatever its size, and the variance is within batches, as in torch's
      `momentum=None`: give batches of one size (a short last one counts for more than its share of images).
    * "ema": start from mean 0 and variance 1 and go running = 0.9 · running + 0.1 · batch, as a fresh network does in
      training (the paper's scripts). Its result depends on the order and mostly on the last 30 batches; after k batches
      0.9^k of the start remains.

    Several `ranks` share the work: rank r of W gives batches r, r + W, … of the `num_batches` that there are, and all
    get the statistics that one process has, up to rounding. The models must be equal; layers' counters of batches
    count those of their own rank.

    Only BatchNorm layers run in training mode meanwhile: dropout and drop-connect are off. Every module's mode and
    every momentum are afterwards as they were, after an exception too. No parameter changes. A network without
    BatchNorm statistics is left alone, none of `batches` is drawn, and the result is 0.

    Raises ValueError for an unknown convention, for no batches at all on a network that needs them, and for batches
    that are not this rank's share of `num_batches`.
    """
    if convention not in get_args(BatchNormConvention):
        known = ", ".join(get_args(BatchNormConvention))
        raise ValueError(f"unknown BatchNorm convention {convention!r}; known: {known}")
    layers = batchnorm_layers(model)
    if not layers:
        return 0
    if ranks.size == 1:
        num_batches, _ = _fold_(model, layers, batches, convention)
    elif num_batches is None:
        raise ValueError("several ranks need to know how many batches they have together; give num_batches")
    elif num_batches > 0:
        part = partial(_part, model, layers, batches, convention, ranks, num_batches)
        _put_(layers, sum_over_ranks(ranks, part))
    if num_batches == 0:
        raise ValueError("BatchNorm statistics cannot be re-estimated from no batches; give at least one")
    return num_batches


def _fold_(
    model: nn.Module,
    layers: list[_BatchNorm],
    batches: Iterable[Tensor],
    convention: BatchNormConvention,
    rank: int = 0,
    size: int = 1,
) -> tuple[int, float]:
    """Take the weighted mean of the statistics of `batches` and of the start, in place, by the layers' own momentum.

    A batch weighs 1 when it comes, and each that follows multiplies all weights before it by `fade`. Returns the number
    of batches, and the weight of all together.
    """
    # Both conventions forget the statistics present. Under "ema" the start, mean 0 and variance 1, weighs nine times as
    # much as the first batch of all, and goes with it to rank 0.
    weight, fade = 0.0, 1.0
    if convention == "ema":
        fade = (1 - _EMA_MOMENTUM) ** size
        weight = (1 / _EMA_MOMENTUM - 1) / fade if rank == 0 else 0.0
    num_batches = 0
    with _only_batchnorm_training(model, layers):
        for images_NCHW in batches:
            if num_batches == 0:  # not earlier: no batches must not destroy statistics
                for layer in layers:
                    layer.reset_running_stats()
            weight = 1 + fade * weight
            # torch's own cumulative mean (momentum=None) reads each layer's counter, and so waits for the device
            for layer in layers:
                layer.momentum = 1 / weight
            model(images_NCHW)
            num_batches += 1
    return num_batches, weight


def _part(
    model: nn.Module,
    layers: list[_BatchNorm],
    batches: Iterable[Tensor],
    convention: BatchNormConvention,
    ranks: Ranks,
    num_batches: int,
) -> Tensor:
    """Return what a rank's batches add to the statistics of all `num_batches`: one flat tensor, float64."""
    num_own, weight = _fold_(model, layers, batches, convention, ranks.rank, ranks.size)
    positions = range(ranks.rank, num_batches, ranks.size)
    if num_own != len(positions):
        raise ValueError(
            f"rank {ranks.rank} of {ranks.size} has {num_own} of {num_batches} batches; its share is {len(positions)}"
        )
    own = torch.cat([tensor.flatten() for tensor in _statistics(layers)]).double()
    if num_own == 0:
        return torch.zeros_like(own)
    num_later = num_batches - 1 - positions[-1]
    last = 1 / num_batches if convention == "cumulative" else _EMA_MOMENTUM * (1 - _EMA_MOMENTUM) ** num_later
    return own * (last * weight)


def _put_(layers: list[_BatchNorm], flat: Tensor) -> None:
    """Set the statistics of all layers from one tensor."""
    statistics = _statistics(layers)
    for tensor, values in zip(statistics, flat.split([tensor.numel() for tensor in statistics]), strict=True):
        tensor.copy_(values)


def _statistics(layers: list[_BatchNorm]) -> list[Tensor]:
    return [tensor for layer in layers for tensor in (layer.running_mean, layer.running_var) if tensor is not None]


@contextmanager
def _only_batchnorm_training(model: nn.Module, layers: list[_BatchNorm]) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    momenta = [(layer, layer.momentum) for layer in layers]
    try:
        model.eval()
        for layer in layers:
            layer.training = True  # the flag of this layer alone: train() would reach into its children
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for layer, old in momenta:
            layer.momentum = old
