"""Options of the commands: one dataclass each, whose fields are the options."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args

import tyro

from harness.cli.parser import parse_command
from harness.common.logging import VARIABLE, Verbosity, show_messages
from harness.config import ComparisonConfig, TicketConfig

Config = TypeVar("Config")
VerbosityOption = Annotated[
    Verbosity | None,
    tyro.conf.arg(
        metavar="|".join(get_args(Verbosity)),
        help="Messages on standard error: quiet (warnings alone, no progress bars), normal, or verbose. "
        f"If not given: the environment variable {VARIABLE}, or normal.",
    ),
]


def parse(
    kind: type[Config],
    description: str | None,
    default: Config | None = None,
    arguments: Sequence[str] | None = None,
) -> Config:
    """Read the command line (or `arguments`) into `kind`, whose fields are the options, and show messages.

    Every command has --verbosity. It is no field of the settings, so no key or record depends on it.
    """
    settings: Any = Annotated[kind, tyro.conf.arg(name="")]
    fields: list[Any] = [("settings", settings), ("verbosity", VerbosityOption, None)]
    command: Any = make_dataclass("Command", fields)
    start = None if default is None else command(default)
    asked = parse_command(command, description=description, arguments=arguments, default=start)
    show_messages(asked.verbosity)
    return cast(Config, asked.settings)


def answer_help(kind: type[Config], description: str | None, default: Config | None = None) -> None:
    """Print help and exit if the command line asks for it.

    A script calls this before its slow imports, such as torch.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        parse(kind, description, default)


@dataclass(frozen=True, kw_only=True)
class OneRun:
    """A logged run, and how it is compared."""

    first: Annotated[str, tyro.conf.Positional]
    """Run ID of a level (of a final training too, where two runs are compared)."""
    comparison: Annotated[ComparisonConfig, tyro.conf.OmitArgPrefixes] = ComparisonConfig()
    json: bool = False
    """Print the result as JSON on standard output."""
    data_directory: Path | None = None
    """Instead of the data directory recorded with the first run."""
    loader: Literal["ffcv", "memory"] | None = None
    """Instead of the loader recorded with the first run."""
    runs: Path = Path("runs")
    """Where finished runs are kept."""
    experiment: str = "signed-tickets"
    """Name of the MLflow experiment."""
    offline: bool = False
    """Use local runs alone and send nothing to MLflow now."""

    @property
    def ticket(self) -> TicketConfig:
        """Return the settings that open the first run's experiment."""
        return TicketConfig(
            self.first,
            data_directory=self.data_directory,
            loader=self.loader,
            runs=self.runs,
            experiment=self.experiment,
            offline=self.offline,
        )


@dataclass(frozen=True, kw_only=True)
class TicketAndSeed(OneRun):
    """A logged level, the fresh θ_init that its signs are put on, and how the two are compared."""

    init_seed: int = 2
    """Draws the fresh θ_init; never the search's own."""


@dataclass(frozen=True, kw_only=True)
class RunPair(OneRun):
    """Two logged trainings of one ticket, and how they are compared."""

    second: Annotated[str, tyro.conf.Positional]
    """Run ID of the other."""
    epsilon: float | None = None
    """Say whether they are connected: whether the barrier is at most this many points."""
    dense: tuple[str, ...] = ()
    """Run IDs of dense trainings (two or more): epsilon is the sd of their test errors, as in the paper."""

    def __post_init__(self) -> None:
        if self.epsilon is not None and self.dense:
            raise ValueError("give --epsilon or --dense, not both")
        if len(self.dense) == 1:
            raise ValueError("--dense needs two or more runs: the sd of one test error is not defined")


@dataclass(frozen=True, kw_only=True)
class StabilityPair(RunPair):
    """Two logged trainings of one start under different sgd_seeds, and how they are compared."""

    cross_init: bool = False
    """Compare different starts too; the authors' scripts do."""
