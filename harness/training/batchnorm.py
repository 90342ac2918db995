"""Re-estimation of BatchNorm running statistics from data.

It is needed when the recorded statistics do not match the weights, as after interpolation or masking. It is also needed
for a level of AWS, which was trained with interpolated ψ and is evaluated with ψ itself.
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

_EMA_MOMENTUM = 0.1  # torch's default for BatchNorm, which the paper's scripts keep


def batchnorm_layers(model: nn.Module) -> list[_BatchNorm]:
    """Return the BatchNorm layers of `model` that track running statistics, SyncBatchNorm and subclasses included."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def reestimate_batchnorm(
    model: nn.Module,
    batches: Iterable[Tensor],
    convention: BatchNormConvention,
    *,
    ranks: Ranks = ONE_PROCESS,
    num_batches: int | None = None,
) -> int:
    """Replace the running mean and variance of all BatchNorm layers by statistics of `batches`.

    Method section 6. There are two conventions:

    * "cumulative": the plain mean over batches of each batch's mean and unbiased variance, as with torch's
      `momentum=None`. The variance is within batches. Every batch has equal weight, even a short one. So batches
      should have equal sizes.
    * "ema": start from mean 0 and variance 1, then update running = 0.9 · running + 0.1 · batch. This is how a fresh
      network behaves in training, and how the paper's scripts work. The result depends on the order of the batches,
      mostly on the last 30. After k batches, 0.9^k of the start remains.

    Several ranks share the work. Afterwards, all ranks hold the statistics that one process would compute, up to
    rounding. The models must be equal on all ranks. `num_batches_tracked` counts the batches of the own rank only.

    Dropout and drop-connect are off, since only BatchNorm layers run in training mode. No parameter changes. Module
    modes and momenta are restored at the end, also after an exception.

    Args:
        batches: This rank's batches of normalised images, float NCHW, on the model's device. Rank r of W must pass
            batches r, r + W, … of the whole sequence.
        ranks: The processes that share the work.
        num_batches: The number of batches of all ranks together. One process does not need it.

    Returns:
        The number of batches of all ranks together. It is 0 for a network without running statistics, which is left
        unchanged and draws no batch.

    Raises:
        ValueError: The convention is unknown, there are no batches, or this rank's number of batches is wrong.
    """
    # Phase: check the input.
    if convention not in get_args(BatchNormConvention):
        known = ", ".join(get_args(BatchNormConvention))
        raise ValueError(f"unknown BatchNorm convention {convention!r}; known: {known}")
    layers = batchnorm_layers(model)
    if not layers:
        return 0

    # Phase: compute the statistics. With several ranks, they are a weighted sum over ranks.
    if ranks.size == 1:
        num_batches, _ = _fold_(model, layers, batches, convention)
    elif num_batches is None:
        raise ValueError("several ranks need the total number of batches: give num_batches")
    elif num_batches > 0:
        part = partial(_part, model, layers, batches, convention, ranks, num_batches)
        _put_(layers, sum_over_ranks(ranks, part))
    if num_batches == 0:
        raise ValueError("no batches: re-estimating BatchNorm statistics needs at least one")
    return num_batches


def _fold_(
    model: nn.Module,
    layers: list[_BatchNorm],
    batches: Iterable[Tensor],
    convention: BatchNormConvention,
    rank: int = 0,
    size: int = 1,
) -> tuple[int, float]:
    """Set each layer's statistics to the weighted mean of the start values and the statistics of `batches`.

    A new batch has weight 1. It multiplies all earlier weights by `fade`. The layers' own momentum does the averaging.

    Returns:
        The number of batches, and the sum of all weights.
    """
    # Phase: choose the weights. Under "cumulative" the start has weight 0. Under "ema" its weight is nine times the
    # first batch's. The first batch of all belongs to rank 0, so only rank 0 counts the start.
    weight, fade = 0.0, 1.0
    if convention == "ema":
        fade = (1 - _EMA_MOMENTUM) ** size
        weight = (1 / _EMA_MOMENTUM - 1) / fade if rank == 0 else 0.0

    # Phase: run the batches.
    num_batches = 0
    with _only_batchnorm_training(model, layers):
        for images_NCHW in batches:
            if num_batches == 0:  # reset only here, so that an empty `batches` keeps the old statistics
                for layer in layers:
                    layer.reset_running_stats()
            weight = 1 + fade * weight
            # momentum=None would read each layer's counter and so synchronise with the device
            for layer in layers:
                layer.momentum = 1 / weight
            try:
                model.forward(images_NCHW)  # never compiled: each value of `momentum` would be a graph
            except ValueError as error:
                if len(images_NCHW) > 1:
                    raise
                raise ValueError(
                    "BatchNorm statistics need more than one value a channel, but a batch has 1 image; choose another "
                    f"number of images, e.g. with --bn-images ({error})"
                ) from error
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
    """Return this rank's term in the weighted sum of all ranks' statistics, as one flat float64 tensor."""
    # Phase: compute and check this rank's own statistics.
    num_own, weight = _fold_(model, layers, batches, convention, ranks.rank, ranks.size)
    positions = range(ranks.rank, num_batches, ranks.size)
    if num_own != len(positions):
        raise ValueError(
            f"rank {ranks.rank} of {ranks.size} has {num_own} of {num_batches} batches; its share is {len(positions)}"
        )
    own = torch.cat([tensor.flatten() for tensor in _statistics(layers)]).double()
    if num_own == 0:
        return torch.zeros_like(own)

    # Phase: multiply by this rank's share of the total weight.
    num_later = num_batches - 1 - positions[-1]
    last = 1 / num_batches if convention == "cumulative" else _EMA_MOMENTUM * (1 - _EMA_MOMENTUM) ** num_later
    return own * (last * weight)


def _put_(layers: list[_BatchNorm], flat: Tensor) -> None:
    """Set the running statistics of all layers from one flat tensor."""
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
            layer.training = True  # set the flag directly, since train() would also change child modules
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for layer, old in momenta:
            layer.momentum = old
