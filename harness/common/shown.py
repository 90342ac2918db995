"""Short texts about named tensors, for `repr`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from harness.common.escape import for_terminal

_NAMED = 3
"""Number of tensors that a text names."""
_MOST_CHARACTERS = 60


def short(value: object) -> str:
    """Return a value of an untrusted file as a text of one short line."""
    text = for_terminal(str(value))
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"


def few_names(names: Iterable[str]) -> str:
    """Return the first names and the number of the others, or "none"."""
    names = list(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(short(name) for name in names[:_NAMED]) + more or "none"


def few_shapes(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the first names with their shapes and the number of the others, or "none"."""
    shapes = [f"{short(name)} {tuple(tensor.shape)}" for name, tensor in list(tensors.items())[:_NAMED]]
    more = f" and {len(tensors) - _NAMED} more" if len(tensors) > _NAMED else ""
    return ", ".join(shapes) + more or "none"


def count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is 1."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
