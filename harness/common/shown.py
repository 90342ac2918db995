"""Short texts about named tensors, for `repr`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

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
    return _few([short(name) for name in names])


def few_shapes(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the first names with their shapes and the number of the others, or "none"."""
    return _few([f"{short(name)} {tuple(tensor.shape)}" for name, tensor in tensors.items()])


def _few(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return ", ".join(texts[:_NAMED]) + more or "none"


def count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is 1."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
