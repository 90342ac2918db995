"""`prune` on ResNet-50 against torch.nn.utils.prune.global_unstructured.

Both remove the same number of the same weights: once from the dense network, once from one pruned before. What
PyTorch keeps is its mask buffers, so the clock covers the call alone and the network is made ready outside of it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.utils.prune import L1Unstructured, custom_from_mask, global_unstructured, remove

from harness.masks import Mask
from harness.models import build_model, partition_of
from harness.pruning import prune
from tools.benchmarks.row import Row, ratio_row

FRACTION = 0.2


def rows(quick: bool) -> list[Row]:
    """Measure the first pruning and one at density 0.1."""
    torch.manual_seed(0)
    model = build_model("resnet50", num_classes=1000, channels=3, image_size=224)
    params = {name: param.detach().clone() for name, param in model.named_parameters()}
    dense = Mask.dense(params, partition_of("resnet50", model).prunable)
    sparse = prune(params, dense, 0.9)
    repeats = 1 if quick else 15
    return [
        _row("dense", model, params, dense, repeats),
        _row("at density 0.1", model, params, sparse, repeats),
    ]


def _row(name: str, model: nn.Module, params: Mapping[str, torch.Tensor], mask: Mask, repeats: int) -> Row:
    ours, theirs = [], []
    for _ in range(repeats):
        started = time.perf_counter()
        kept = prune(params, mask, FRACTION)
        seconds = time.perf_counter() - started
        _require_exact(params, mask, kept)
        reference, reference_mask = _torch_prune(model, mask, mask.num_remaining - kept.num_remaining)
        ours.append(seconds)
        theirs.append(reference)
    _require_exact(params, mask, reference_mask)
    note = f"{mask.numel:,} weights, {kept.num_remaining:,} kept, exact; median of {repeats}, least and most"
    return ratio_row(f"prune ResNet-50 {name} / global_unstructured [s]", ours, theirs, at_most=1.0, note=note)


def _torch_prune(model: nn.Module, mask: Mask, num_removed: int) -> tuple[float, Mask]:
    """Return the seconds PyTorch takes to remove `num_removed` more, and its mask; the model is left as it was."""
    names = sorted(mask.tensors)
    places = [(model.get_submodule(name.removesuffix(".weight")), "weight") for name in names]
    values = [model.get_parameter(name).detach().clone() for name in names]
    if mask.num_remaining < mask.numel:
        for (module, weight), name in zip(places, names, strict=True):
            custom_from_mask(module, weight, mask.tensors[name])
    started = time.perf_counter()
    global_unstructured(places, pruning_method=L1Unstructured, amount=num_removed)
    seconds = time.perf_counter() - started
    found = {name: model.get_buffer(f"{name}_mask").bool() for name in names}
    for (module, weight), name, value in zip(places, names, values, strict=True):
        remove(module, weight)
        with torch.no_grad():
            model.get_parameter(name).copy_(value)
    return seconds, Mask(found)


def _require_exact(params: Mapping[str, torch.Tensor], before: Mask, after: Mask) -> None:
    """Raise unless `after` keeps exactly the count asked for, of the live weights the largest."""
    expected = int((1 - FRACTION) * before.num_remaining)
    smallest_kept = min(float(params[name][kept].abs().min()) for name, kept in after.tensors.items() if kept.any())
    removed = {name: before.tensors[name] & ~kept for name, kept in after.tensors.items()}
    largest_removed = max(float(params[name][gone].abs().max()) for name, gone in removed.items() if gone.any())
    if after.num_remaining != expected or not after.issubset(before) or largest_removed > smallest_kept:
        raise RuntimeError(
            f"not exact: {after.num_remaining:,} kept of {expected:,} expected, smallest kept {smallest_kept:.3e}, "
            f"largest removed {largest_removed:.3e}"
        )
