"""Make a figure or table of the paper: whatever of its runs is not finished, then plots, tables and a result page.

    accelerate launch recipes/reproduce.py fig3 --dataset cifar100 --network resnet50_cifar
    accelerate launch recipes/reproduce.py table2 --network mobilenet_v2 --data.directory /data
    accelerate launch recipes/reproduce.py fig3 --scale small --dataset fashion_mnist_small
    accelerate launch recipes/reproduce.py fig3 --list              # one launch command for each run
    accelerate launch recipes/reproduce.py fig3 --shard $i/$n       # a share of them; a Slurm array needs no more

Figures: fig2, fig3, fig4, fig5, fig6, table1, table2. The same command again does what is not finished and writes the
page anew; `python tools/report.py` writes it from runs that exist. Pages go to results/ and to the lineage.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from scales import SCALES, subject  # type: ignore[import-not-found]  # its neighbour, found when launched

from harness.config import Precision, SearchConfig
from harness.experiment import Experiment
from harness.launch import clear_errors, launched, parse
from harness.progress import say
from harness.reproduction.collect import collect
from harness.reproduction.figure import FIGURES, figure_named
from harness.reproduction.plan import Plan
from harness.reproduction.report import PAGE, commit_report, write_report
from harness.reproduction.work import Work


@dataclass(frozen=True)
class Reproduction:
    """Which figure, of what, how large."""

    figure: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FIGURE", help=f"One of: {', '.join(FIGURES)}.")]
    dataset: str | None = None
    """A data set of the figure (its first if not given); small: digits or fashion_mnist_small."""
    network: str | None = None
    """A network of the figure (its first if not given); small: resnet20 if not given."""
    scale: Literal["paper", "small", "smoke"] = "paper"
    """paper: its settings; small: a reduction for a CPU, named as such; smoke: seconds, to see that it goes through."""
    trials: int | None = None
    """Instead of the scale's (3)."""
    levels: tuple[int, ...] | None = None
    """Levels whose tickets are trained, instead of the scale's."""
    shared_search: bool = False
    """One search for all trials, as in the authors' scripts."""
    list: bool = False
    """Print one launch command for each run, and run nothing."""
    shard: str | None = None
    """i/n: make the i-th of n shares of the runs, and no page."""
    only: tuple[str, ...] = ()
    """Make these runs, named as in --list, and what they are made from."""
    data_directory: Path = Path("data")
    """Where tools/prepare_data.py put the data."""
    loader: Literal["ffcv", "memory"] | None = None
    """Instead of the scale's."""
    num_workers: int | None = None
    """Loader threads a process, instead of the scale's."""
    precision: Precision = "no"
    """Mixed precision."""
    runs: Path = Path("runs")
    """Where finished runs are kept."""
    experiment: str = "signed-tickets"
    """Name of the MLflow experiment."""
    offline: bool = False
    """Send nothing to MLflow now."""
    out: Path = Path("results")
    """Where page, tables and plots go, in a directory of the figure's name."""


def plan_of(settings: Reproduction) -> Plan:
    """Return what is to be made."""
    figure = figure_named(settings.figure)
    dataset, network = subject(figure, settings.scale, settings.dataset, settings.network)
    scale = SCALES[settings.scale](figure, dataset, network)
    levels = settings.levels or scale.levels
    scale = replace(
        scale, trials=settings.trials or scale.trials, levels=levels, config=_config(settings, scale.config)
    )
    return Plan(figure, scale, settings.shared_search)


def _config(settings: Reproduction, config: SearchConfig) -> SearchConfig:
    data = config.data
    data = replace(
        data,
        directory=settings.data_directory,
        loader=settings.loader or data.loader,
        num_workers=data.num_workers if settings.num_workers is None else settings.num_workers,
    )
    return replace(
        config,
        data=data,
        precision=settings.precision,
        runs=settings.runs,
        experiment=settings.experiment,
        offline=settings.offline,
    )


def commands(plan: Plan) -> list[str]:
    """Return one launch line for each run, ready to paste: this launch's own options, and the run's name."""
    options = [word for word in sys.argv[1:] if word != "--list"]
    return [f"accelerate launch {shlex.join([sys.argv[0], *options, '--only', name])}" for name in plan.names()]


def show(experiment: Experiment, plan: Plan, out: Path) -> None:
    """Write the page, record it, and say where it is (rank 0)."""
    results = collect(experiment.store, plan, experiment.settings)
    config = plan.scale.config
    directory = out / f"{plan.figure.name}-{config.data.name}-{config.model.name}"
    write_report(results, directory)
    commit_report(experiment.store, results)
    print((directory / PAGE).read_text().split("## Runs")[0])
    print(f"page, tables and plots: {directory}")


def main() -> None:
    """Make the runs of a figure, or a share of them, then its page."""
    with clear_errors():
        settings = parse(Reproduction, __doc__)
        plan = plan_of(settings)
        if settings.list:
            print("\n".join(commands(plan)))
            return
        if settings.shard and settings.only:
            raise ValueError("give --shard or --only, not both")
        chains = list(plan.chains())
        if settings.shard:
            index, _, count = settings.shard.partition("/")
            if not (index.isdigit() and count.isdigit()):
                raise ValueError(f"--shard {settings.shard}: give i/n, such as 1/4")
            chains = plan.shard(int(index), int(count))
        with launched(plan.scale.config) as experiment:
            work = Work(experiment, plan)
            if settings.only:
                work.make_only(settings.only)
                return
            say(f"{len(chains)} searches or dense trainings with all that is made from them: {', '.join(chains)}")
            work.make(chains)
            if settings.shard:
                say("this share is finished; when all are, the same command without --shard writes the page")
            else:
                experiment.world.on_main(lambda: show(experiment, plan, settings.out))


if __name__ == "__main__":
    main()
