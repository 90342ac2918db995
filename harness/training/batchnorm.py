"""BatchNorm running statistics taken anew from data, for networks whose recorded ones mean nothing.

Three kinds of network need it: an interpolated one (its activations are those of neither end), a level of AWS (its
statistics were gathered under random α, not under ψ) and one that was just masked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

BatchNormConvention = Literal["cumulative", "ema"]

_EMA_MOMENTUM = 0.1  # torch's default for BatchNorm, and what the paper's scripts leave it at


def batchnorm_layers(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers of `model` that keep running statistics (subclasses and SyncBatchNorm included)."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def reestimate_batchnorm(model: nn.Module, batches: Iterable[Tensor], convention: BatchNormConvention) -> int:
    """Replace BatchNorm's running mean and variance by those of `batches`; returns the number of batches used.

    `batches` are normalised images, float NCHW, on the model's device. Method section 6; the conventions are

    * "cumulative": forget the old statistics and take the plain mean over batches of each batch's mean and unbiased
      variance. Every batch weighs the same whatever its size, and the variance is within batches, as in torch's
      `momentum=None`: give batches of one size (a short last one counts for more than its share of images).
    * "ema": start from the statistics present and go running = 0.9 · running + 0.1 · batch, as in training. Its
      result depends on the order and mostly on the last 30 batches; after k batches 0.9^k of the start remains.

    Only BatchNorm layers run in training mode meanwhile: dropout and drop-connect are off. Every module's mode and
    every momentum are afterwards as they were, after an exception too. No parameter changes. A network without
    BatchNorm statistics is left alone, none of `batches` is drawn, and the result is 0.

    Raises ValueError for an unknown convention, and for no batches at all on a network that needs them.
    """
    if convention not in get_args(BatchNormConvention):
        known = ", ".join(get_args(BatchNormConvention))
        raise ValueError(f"unknown BatchNorm convention {convention!r}; known: {known}")
    layers = batchnorm_layers(model)
    if not layers:
        return 0
    num_batches = 0
    with _only_batchnorm_training(model, layers):
        for images_NCHW in batches:
            if num_batches == 0 and convention == "cumulative":  # not earlier: no batches must not destroy statistics
                for layer in layers:
                    layer.reset_running_stats()
            # torch's own cumulative mean (momentum=None) reads each layer's counter, and so waits for the device
            momentum = 1.0 / (num_batches + 1) if convention == "cumulative" else _EMA_MOMENTUM
            for layer in layers:
                layer.momentum = momentum
            model(images_NCHW)
            num_batches += 1
    if num_batches == 0:
        raise ValueError("BatchNorm statistics cannot be re-estimated from no batches; give at least one")
    return num_batches


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
