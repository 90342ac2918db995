"""Points on the straight line between two networks of one shape."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def interpolate(a: Mapping[str, Tensor], b: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Return αa + (1 − α)b for every float tensor (method section 6).

    α = 1 gives a and α = 0 gives b, bit for bit. Integer buffers, such as BatchNorm's counter, are those of a.

    Args:
        a: State dict: parameters and buffers.
        b: State dict with the same names, shapes and dtypes.
        alpha: In 0..1.

    Raises:
        ValueError: α is outside 0..1, or tensors differ; the message names each of them.
    """
    check_same_tensors(a, b)
    result = {name: torch.empty_like(tensor) for name, tensor in a.items()}
    interpolate_into(result, a, b, alpha)
    return result


def interpolate_into(
    target: Mapping[str, Tensor], a: Mapping[str, Tensor], b: Mapping[str, Tensor], alpha: float
) -> None:
    """Write αa + (1 − α)b into the tensors of `target`, in place.

    `target` keeps its storage and memory format, so it can be a model's own state dict.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"α must be between 0 and 1, got {alpha}")
    with torch.no_grad():
        for name, tensor in target.items():
            if tensor.is_floating_point():
                torch.lerp(b[name].detach(), a[name].detach(), alpha, out=tensor.detach())
            else:
                tensor.copy_(a[name])


def check_same_tensors(a: Mapping[str, Tensor], b: Mapping[str, Tensor], names: tuple[str, str] = ("a", "b")) -> None:
    """Raise ValueError that names every tensor missing on one side or of another shape or dtype."""
    problems = [f"{name}: only in {names[0]}" for name in a if name not in b]
    problems += [f"{name}: only in {names[1]}" for name in b if name not in a]
    problems += [
        f"{name}: {names[0]} has {_kind(a[name])}, {names[1]} has {_kind(b[name])}"
        for name in a
        if name in b and _kind(a[name]) != _kind(b[name])
    ]
    if problems:
        raise ValueError(f"{names[0]} and {names[1]} are not networks of one shape:\n  " + "\n  ".join(problems))


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
