"""Check the arguments of SignPruner, and return them as JSON values."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from harness.common.escape import one_line
from harness.common.tensors import check_values

_TOO_LARGE = 2**63  # records hold integers of 64 bits


def check_network(model: object) -> None:
    """Raise TypeError unless the argument is a network, and ValueError unless its parameters have values."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"SignPruner takes a network (torch.nn.Module), got {_kind(model)}")
    # SignPruner itself refuses parameters of FSDP, which have `full_tensor`.
    own = {name: param for name, param in model.named_parameters() if not hasattr(param, "full_tensor")}
    check_values(own, "use the network")


def whole_number(name: str, value: Any, least: int = -_TOO_LARGE) -> int:
    """Return an integer of Python, NumPy or torch as an int.

    Raises:
        TypeError: The value is no integer.
        ValueError: It is below `least`, or has more than 64 bits.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        found = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {_shown(value)}; give a whole number") from None
    if found < least:
        raise ValueError(f"{name} is {found}; it must be {least} or more")
    if abs(found) >= _TOO_LARGE:
        raise ValueError(f"{name} is {found}; it must be below 2**63")
    return found


def module_names(given: str | Sequence[str]) -> str:
    """Return the names of the classifier's modules, joined by commas."""
    names = given.split(",") if isinstance(given, str) else given
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise TypeError(f"classifier is {_shown(given)}; give the dotted name of a module as text, or a list of names")
    return ",".join(names)


def falling_densities(given: Iterable[float]) -> tuple[float, ...]:
    """Return densities as floats.

    Raises:
        TypeError: They are no numbers.
        ValueError: They do not fall, or are not within 0..1.
    """
    try:
        if isinstance(given, str | bytes | Mapping):
            raise TypeError
        densities = tuple(float(one) for one in given)
    except (TypeError, ValueError):
        raise TypeError(f"densities is {_shown(given)}; give a list of numbers, such as [0.8, 0.64, 0.5]") from None
    if not densities or not all(1 >= a > b > 0 for a, b in zip((1.0, *densities), densities, strict=False)):
        raise ValueError(f"densities is {list(densities)}; they must fall from level to level, within 0..1")
    return densities


def fraction(name: str, value: Any) -> float:
    """Return a number above 0 and below 1.

    Raises:
        TypeError: The value is no number.
        ValueError: It is outside.
    """
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {_shown(value)}; give a number") from None
    if not 0 < found < 1:
        raise ValueError(f"{name} is {found}; it must be above 0 and below 1")
    return found


def json_parameters(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a user's parameters.

    Raises:
        TypeError: They are no dictionary.
        ValueError: A value is no JSON value. The message names it.
    """
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"parameters is of type {_kind(given)}; give a dictionary, such as vars(args)")
    for name, value in (given or {}).items():
        try:
            json.dumps({name: value}, sort_keys=True, allow_nan=False, ensure_ascii=False).encode()  # records are UTF-8
        except (TypeError, ValueError):
            raise ValueError(
                f"parameter {_shown(name)} is {_shown(value)}; parameters must be JSON values: finite numbers, "
                "texts, True, False, None, lists and dictionaries of them"
            ) from None
    return dict(given or {})


def numbers(given: Mapping[str, Any] | None, taken: Iterable[str]) -> dict[str, float]:
    """Return a user's metrics as floats.

    Args:
        given: The metrics by name.
        taken: Names that the caller computes itself.

    Raises:
        TypeError: They are no dictionary of numbers.
        ValueError: A name is taken.
    """
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f'metrics is of type {_kind(given)}; give a dictionary, such as {{"test_error_percent": 8.1}}')
    if used := sorted(set(taken) & (given or {}).keys()):
        raise ValueError(f"metrics has {', '.join(used)}, which log() computes itself; choose other names")
    found = {}
    for name, value in (given or {}).items():
        try:
            if isinstance(value, str):
                raise TypeError
            found[name] = float(value)
        except (TypeError, ValueError, RuntimeError):  # torch raises the last two for a tensor of several values
            raise TypeError(f"metric {_shown(name)} is {_shown(value)}; give one number") from None
    return found


def _kind(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _shown(value: object) -> str:
    """Return the beginning of a value as text of one line."""
    return f"{one_line(repr(value)):.60}"
