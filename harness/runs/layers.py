"""What a training made of each layer: how many weights are left there, and what became of their signs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from harness.masks import Mask

COLUMNS = ("layer", "shape", "weights", "kept", "density", "flipped_signs", "positive")


@torch.no_grad()
def layer_table(
    params: Mapping[str, torch.Tensor], start_signs: Mapping[str, torch.Tensor], mask: Mask
) -> dict[str, Any]:
    """Return a row for each prunable tensor, in the form that MLflow shows as a table: {"columns", "data"}.

    `flipped_signs` is the share of the kept weights whose sign differs from `start_signs`, `positive` the share of
    them that is positive; both are None where nothing is left.
    """
    rows = []
    for name, kept in mask.tensors.items():
        signs = params[name].detach().sign().cpu()
        num_kept = int(kept.sum())
        flipped = int(((signs != start_signs[name]) & kept).sum())
        positive = int(((signs > 0) & kept).sum())
        shares = [flipped / num_kept, positive / num_kept] if num_kept else [None, None]
        shape = "×".join(str(size) for size in kept.shape)
        rows.append([name, shape, kept.numel(), num_kept, num_kept / kept.numel(), *shares])
    return {"columns": list(COLUMNS), "data": rows}
