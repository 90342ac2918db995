"""Options of the comparison tools, and the parser that all commands use. Each field of a dataclass is one option."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args

import tyro

from harness.cli.parser import parse_command
from harness.common.logging import VARIABLE, Verbosity, show_messages
from harness.config import ComparisonConfig, CompileMode, TicketConfig

Config = TypeVar("Config")
VerbosityOption = Annotated[
    Verbosity | None,
    tyro.conf.arg(
        metavar="|".join(get_args(Verbosity)),
        help="Messages on standard error. quiet: warnings only, no progress. normal: one line for each finished run. "
        "verbose: also details, each with its time and module.",
        help_behavior_hint=f"(default: environment variable {VARIABLE}, or normal)",
    ),
]


def parse(
    kind: type[Config],
    description: str | None,
    default: Config | None = None,
    arguments: Sequence[str] | None = None,
) -> Config:
    """Parse a command line into a dataclass, and start to show messages.

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
    """A finished run, and the settings of its comparison."""

    first: Annotated[str, tyro.conf.Positional]
    """Run ID or key of a level of a search, or a unique prefix of it."""
    comparison: Annotated[ComparisonConfig, tyro.conf.OmitArgPrefixes] = ComparisonConfig()
    json: bool = False
    """Print the result as JSON instead of a table, for another program."""
    data_directory: Path | None = None
    """Directory of prepared data sets. Change it if the data moved. Default: as recorded with the first run."""
    loader: Literal["ffcv", "memory", "torch"] | None = None
    """Data loader. Use memory without FFCV. Default: as recorded with the first run."""
    compile: CompileMode | None = None
    """Compile the network that evaluates the points. Compiling pays only for many images. Default: as recorded with
    the first run."""
    runs: Path = Path("runs")
    """Directory of local runs."""
    experiment: str = "signed-tickets"
    """Name of the MLflow experiment."""
    offline: bool = False
    """Use local runs only and deliver nothing to MLflow. `python tools/lineage.py sync` delivers later."""
    trust_code: bool = False
    """Execute the Python file that defines the run's network or data, also if you have named it in no command. Read its
    copy first: network.py in the run's directory, source.py in the data set's."""

    @property
    def ticket(self) -> TicketConfig:
        """Return the settings that open the experiment of the first run."""
        return TicketConfig(
            self.first,
            data_directory=self.data_directory,
            loader=self.loader,
            compile=self.compile,
            runs=self.runs,
            experiment=self.experiment,
            offline=self.offline,
            trust_code=self.trust_code,
        )


@dataclass(frozen=True, kw_only=True)
class TicketAndSeed(OneRun):
    """A level, the seed of a fresh θ_init for its signs, and the settings of the comparison."""

    init_seed: int = 2
    """Seed of θ_init, the fresh initial parameters. It must differ from the search's own."""


@dataclass(frozen=True, kw_only=True)
class RunPair(OneRun):
    """Two trainings of one ticket, and the settings of their comparison."""

    second: Annotated[str, tyro.conf.Positional]
    """Run ID or key of the second run, or a unique prefix of it."""
    epsilon: float | None = None
    """Largest barrier, in percentage points, at which the runs count as connected. Default: no verdict."""
    dense: tuple[str, ...] = ()
    """Run IDs of two or more dense trainings. ε becomes the sd of their test errors, as in the paper."""

    def __post_init__(self) -> None:
        if self.epsilon is not None and self.dense:
            raise ValueError("--epsilon and --dense exclude each other: give one of them")
        if len(self.dense) == 1:
            raise ValueError("--dense needs two or more runs: one test error has no sd")


@dataclass(frozen=True, kw_only=True)
class StabilityPair(RunPair):
    """Two trainings from one start with different sgd_seeds, and the settings of their comparison."""

    cross_init: bool = False
    """Also compare trainings from different starts, as the authors' scripts do."""
