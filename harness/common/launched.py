"""Numbers that a launcher passes to its processes in environment variables, such as RANK and WORLD_SIZE."""

from __future__ import annotations

import os
from collections.abc import Mapping

_MOST = 1_000_000
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Numbers of processes that Accelerate reads, the first that is set."""
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
    **dict.fromkeys(SIZES[1:], (1, _MOST)),
    **dict.fromkeys(("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"), (1, _MOST)),
    **dict.fromkeys(("PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"), (0, _MOST)),
    **dict.fromkeys(("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK"), (0, _MOST)),
}
"""The least and the greatest value of each variable. Accelerate reads those of MPI, too."""


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
        ValueError: A value is no whole number, a rank is not below its number of processes, RANK is of several
            processes whose number is unknown, or LOCAL_RANK is of several that have no address.
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

    # Without a number of processes, RANK was left behind. A process that is not rank 0 would report nothing.
    if (number := launcher_number("RANK", 0)) > 0 and all(launcher_number(size, 1) == 1 for size in SIZES):
        raise ValueError(
            f"the environment variable RANK is {number}, but WORLD_SIZE is not set: start with `accelerate launch`, "
            "which sets both, or `unset RANK`"
        )

    # Without an address, LOCAL_RANK was left behind. It would make Accelerate and torch join a process group.
    if launcher_number("WORLD_SIZE", 1) > 1 or os.environ.get("MASTER_ADDR", "").strip():
        return
    if (number := launcher_number("LOCAL_RANK", 0)) > 0:
        raise ValueError(
            f"the environment variable LOCAL_RANK is {number}, but MASTER_ADDR and WORLD_SIZE are not set: start with "
            "`accelerate launch`, which sets all, or `unset LOCAL_RANK`"
        )
    os.environ.pop("LOCAL_RANK", None)


def check_address() -> None:
    """Check that several processes have an address at which they meet.

    Raises:
        ValueError: They have none. The message names the variable that asks for several.
    """
    for name in SIZES:
        if (size := launcher_number(name, 1)) > 1 and not os.environ.get("MASTER_ADDR", "").strip():
            raise ValueError(
                f"asked for {size} processes, but MASTER_ADDR is not set: start with `accelerate launch`, which sets "
                f"it, or `unset {name}`"
            )


def counted(processes: int | str) -> str:
    """Return "1 process", or for example "8 processes"."""
    return f"{processes} process{'' if str(processes) == '1' else 'es'}"
