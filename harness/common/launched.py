"""Numbers that a launcher passes to its processes in environment variables, such as RANK and WORLD_SIZE."""

from __future__ import annotations

import os
from collections.abc import Mapping

_MOST = 1_000_000
NUMBERS: Mapping[str, tuple[int, int]] = {
    "WORLD_SIZE": (1, _MOST),
    "RANK": (0, _MOST),
    "LOCAL_WORLD_SIZE": (1, _MOST),
    "LOCAL_RANK": (0, _MOST),
    "GROUP_WORLD_SIZE": (1, _MOST),
    "GROUP_RANK": (0, _MOST),
    "MASTER_PORT": (0, 65_535),
    "TORCHELASTIC_RESTART_COUNT": (0, _MOST),
    "TORCHELASTIC_MAX_RESTARTS": (0, _MOST),
}
"""The least and the greatest value of each variable."""


def launcher_number(name: str, default: int) -> int:
    """Return a number that the launcher set, or `default` if the variable is unset or empty.

    Raises:
        ValueError: The value is no whole number in the allowed range.
    """
    value = os.environ.get(name, "").strip()
    if not value:  # schedulers leave variables behind that are set to nothing
        return default
    least, most = NUMBERS[name]
    if not (value.isascii() and value.isdecimal() and least <= int(value) <= most):
        raise ValueError(
            f"the environment variable {name} is {value!r}; it must be a whole number from {least:,} to {most:,}. A "
            f"launcher sets it: start with `accelerate launch`, or `unset {name}`"
        )
    return int(value)


def check_launcher_numbers() -> None:
    """Check the numbers that the launcher set, and remove empty variables, which Accelerate and torch cannot read.

    Raises:
        ValueError: A value is no whole number, or a rank is not below its number of processes.
    """
    for name in NUMBERS:
        if not os.environ.get(name, "").strip():
            os.environ.pop(name, None)
        else:
            launcher_number(name, 0)
    for rank, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE"), ("GROUP_RANK", "GROUP_WORLD_SIZE")):
        number, count = launcher_number(rank, 0), launcher_number(size, 1)
        if number >= count and {rank, size} <= os.environ.keys():
            raise ValueError(f"the environment variable {rank} is {number}, but {size} is {count}: ranks start at 0")


def counted(processes: int | str) -> str:
    """Return "1 process", or for example "8 processes"."""
    return f"{processes} process{'' if str(processes) == '1' else 'es'}"
