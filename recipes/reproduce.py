"""Make a figure or table of the paper: the runs that are missing, then plots, tables and a result page.

    accelerate launch recipes/reproduce.py fig3 --dataset cifar100 --network resnet50_cifar
    accelerate launch recipes/reproduce.py table2 --network mobilenet_v2 --data-directory /data
    accelerate launch recipes/reproduce.py fig3 --scale small --dataset fashion_mnist_small
    accelerate launch recipes/reproduce.py fig3 --list              # one launch command for each run, and their cost
    accelerate launch recipes/reproduce.py fig3 --shard $i/$n       # a share of them; a Slurm array needs no more
    accelerate launch recipes/reproduce.py --study depth            # a plan of recipes/studies, judged when it is whole

Figures and tables: fig2 to fig6, table1, table2; claims, rewinding, short_levels: statements of the paper's text;
gem_miner: of Gem-Miner's own paper; fig4_equal, controls, transfer: in no paper. The same command again makes the runs
that are missing and writes the page anew; `python tools/report.py` writes it from runs that exist. Pages go to results/
and to the lineage. Results so far: docs/results.md.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from harness.cli.errors import clear_errors
from harness.cli.launch import launch
from harness.cli.options import parse
from harness.common.tables import print_markdown, print_table
from harness.config import Precision, SearchConfig, known
from harness.experiment.experiment import Experiment
from harness.lineage.nodes.local_files import LocalNodes
from harness.pruning import METHODS
from harness.reproduction.costs import costs, given_rate, measured_rate
from harness.reproduction.figure import FIGURES, Figure, figure_named
from harness.reproduction.figure_plan import FigurePlan, Scale
from harness.reproduction.figure_runner import FigureRunner, MadeChain
from harness.reproduction.report import show
from harness.reproduction.study import Study, read_study
from harness.reproduction.study_page import write_page
from harness.reproduction.study_records import (
    check_made_anew,
    compare_again,
    directory_of,
    finished_chains,
    record_chain,
)
from harness.reproduction.study_results import StudyResults
from recipes.presets.figures import SCALES, SMALL

_log = logging.getLogger("harness.recipes.reproduce")
_REPOSITORY = Path(__file__).resolve().parents[1]
STUDIES = _REPOSITORY / "recipes" / "studies"
RESULTS = _REPOSITORY / "docs" / "results"
if not RESULTS.is_dir():  # installed without the repository
    RESULTS = Path("results")
_OF_STUDIES = ("study", "results", "again", "list", "seconds_per_epoch", "shard", "figure")
_OF_LAUNCH = ("runs", "experiment", "offline", "data_directory", "loader", "num_workers")
"""Options that change no number; all others are a study's plan to set."""


@dataclass(frozen=True)
class ChangedSettings:
    """Single settings of a figure that differ from its scale, to see what a claim depends on."""

    lr: float | None = None
    """Learning rate, instead of the scale's."""
    weight_decay: float | None = None
    """Weight decay, instead of the scale's."""
    warmup_epochs: int | None = None
    """Epochs of the dense warm-up, instead of the scale's."""
    level_epochs: int | None = None
    """Epochs a level, instead of the scale's."""
    final_epochs: int | None = None
    """Epochs of a final training, instead of the scale's."""
    global_batch_size: int | None = None
    """Images per optimizer step, instead of the scale's; smoke's 4 are too few for more than 4 processes."""

    def applied(self, figure: Figure, scale: Scale) -> Scale:
        """Return the scale with these settings, named in its reduction and its variant.

        Raises ValueError for settings that no method of the figure heeds.
        """
        given = {name: value for name, value in vars(self).items() if value is not None}
        if not given:
            return scale
        unheeded = sorted(given.keys() - {"global_batch_size"})
        if unheeded and all(METHODS[method].searches_one_density for method in figure.methods):
            options = ", ".join(f"--{name.replace('_', '-')}" for name in unheeded)
            raise ValueError(
                f"{options}: {figure.name} shows a method with settings of its own, which heeds none of it"
            )
        config, optim_names = scale.config, ("lr", "weight_decay")

        def changed(config: SearchConfig) -> SearchConfig:
            optim = replace(config.optim, **{name: given[name] for name in optim_names if name in given})
            final = replace(config.final, epochs=given.get("final_epochs", config.final.epochs))
            rest = {name: value for name, value in given.items() if name not in (*optim_names, "final_epochs")}
            return replace(config, optim=optim, final=final, **rest)

        own = vars(config.optim) | vars(config) | {"final_epochs": scale.finals.final.epochs}
        words = [f"{name.replace('_', ' ')} {value:g} instead of {own[name]:g}" for name, value in given.items()]
        return replace(
            scale,
            config=changed(config),
            used_on=changed(scale.used_on) if scale.used_on else None,
            reduction="; ".join([*([scale.reduction] if scale.reduction else []), *words]),
            variant=scale.variant + "".join(f"-{name.replace('_', '-')}-{value:g}" for name, value in given.items()),
        )


@dataclass(frozen=True)
class FigureOptions:
    """Which figure, for which data set and network, how large; `tools/report.py` has the same options."""

    figure: Annotated[
        tyro.conf.Positional[str], tyro.conf.arg(metavar="FIGURE", help=f"One of: {', '.join(FIGURES)}.")
    ] = ""
    dataset: str | None = None
    """A data set of the figure (its first if not given); small: digits or fashion_mnist_small."""
    network: str | None = None
    """A network of the figure (its first if not given); small: resnet20 if not given."""
    scale: Literal["paper", "small", "smoke"] = "paper"
    """paper: its settings; small: a reduction for a CPU, named as such; smoke: two densities and an epoch each, in
    batches of 4 on the paper's data sets, to see that it goes through on a handful of images."""
    width: int | None = None
    """Channels of the network's first stage (Figure 4: 16 and 32), its own if not given."""
    trials: int | None = None
    """Instead of the scale's (3)."""
    changes: Annotated[ChangedSettings, tyro.conf.OmitArgPrefixes] = ChangedSettings()
    levels: tuple[int, ...] | None = None
    """Levels whose tickets are trained, instead of the scale's."""
    shared_search: bool = False
    """One search for all trials, as in the authors' scripts."""
    runs: Path = Path("runs")
    """Where finished runs are kept."""
    experiment: str = "signed-tickets"
    """Name of the MLflow experiment."""
    offline: bool = False
    """Use local runs alone and send nothing to MLflow now."""
    out: Path = Path("results")
    """Where page, tables and plots go, in a directory of the figure's name."""

    @property
    def plan(self) -> FigurePlan:
        """The runs to make; ValueError for a data set, network or level that the figure does not have."""
        figure = figure_named(self.figure)
        dataset, network = self._subject(figure)
        scale = SCALES[self.scale](figure, dataset, network)
        model = replace(scale.config.model, width=self.width)
        reductions = [scale.reduction] if scale.reduction else []
        if self.width is not None and self.width not in figure.widths:
            reductions.append(f"width {self.width}")
        scale = replace(
            scale,
            trials=scale.trials if self.trials is None else self.trials,
            levels=self.levels or scale.levels,
            variant="-".join(["", "levels", *map(str, self.levels)]) if self.levels else "",
            config=replace(scale.config, model=model),
            used_on=replace(scale.used_on, model=model) if scale.used_on else None,
            reduction="; ".join(reductions) or None,
        )
        return FigurePlan(figure, self.changes.applied(figure, scale), self.shared_search)

    def _subject(self, figure: Figure) -> tuple[str, str]:
        """Return data set and network: as given, else the defaults of the figure or of the scale."""
        if self.scale != "paper":
            dataset = known("data set", self.dataset or next(iter(SMALL)), [*SMALL, *figure.subjects])
            return dataset, self.network or ("resnet20" if dataset in SMALL else figure.subjects[dataset][0])
        dataset = known(
            f"data set of {figure.name}", self.dataset or next(iter(figure.subjects)), list(figure.subjects)
        )
        networks = figure.subjects[dataset]
        return dataset, known(f"network of {figure.name} on {dataset}", self.network or networks[0], list(networks))


@dataclass(frozen=True)
class ReproductionOptions(FigureOptions):
    """Which figure to make, and how."""

    study: str | None = None
    """Instead of FIGURE: make the runs that a plan names, recipes/studies/STUDY.toml, and its page; runs that are
    recorded under --results count as made. A shard is a share of its trials."""
    results: Path = RESULTS
    """Where a study's records and page are kept."""
    again: str | None = None
    """With --study: make this recorded chain again, such as aws-s11, in a directory --runs without it, and print each
    number beside the recorded one. On the same kind of CPU the bits are equal."""
    list: bool = False
    """Print one launch command for each run, of a study for each trial, and run nothing. What they cost goes to
    standard error: epochs of each chain and in all, and hours."""
    seconds_per_epoch: float | None = None
    """With --list: how long an epoch takes, for the hours; measured from the finished runs in --runs if not given."""
    shard: str | None = None
    """i/n: make the i-th of n shares of the runs, and no page."""
    only: tuple[str, ...] = ()
    """Make these runs, named as in --list, and the runs they need."""
    data_directory: Path = Path("data")
    """Where tools/prepare_data.py put the data."""
    loader: Literal["ffcv", "memory"] | None = None
    """Instead of the scale's."""
    num_workers: int | None = None
    """Loader threads a process, instead of the scale's."""
    precision: Precision = "no"
    """Mixed precision: no is the paper's float32; auto is bf16 where the CUDA device has it. The page names it."""

    def config(self, config: SearchConfig) -> SearchConfig:
        """Return the plan's settings as this launch reads and records them; only precision moves a number."""
        data = replace(
            config.data,
            directory=self.data_directory,
            loader=self.loader or config.data.loader,
            num_workers=config.data.num_workers if self.num_workers is None else self.num_workers,
        )
        return replace(
            config,
            data=data,
            precision=self.precision,
            runs=self.runs,
            experiment=self.experiment,
            offline=self.offline,
        )


def commands(plan: FigurePlan, chains: Collection[str] | None = None) -> list[str]:
    """Return one launch line for each run, or each of some chains, ready to paste: this launch's own options, and the
    run's name."""
    return [_command("--only", name) for name in plan.names(chains)]


def study_commands(study: Study, chains: Collection[str]) -> list[str]:
    """Return one launch line for each trial that these chains are of."""
    trials = list(study.plan.trials)
    wanted = {found[0].trial for name, found in study.plan.chains().items() if name in chains}
    return [_command("--shard", f"{trials.index(trial) + 1}/{len(trials)}") for trial in sorted(wanted)]


def _command(*more: str) -> str:
    """Return this launch's command with `more` words, and without those that list."""
    words, kept = iter(sys.argv[1:]), []
    for word in words:
        name, equals, _ = word.replace("_", "-").partition("=")
        if name in ("--shard", "--seconds-per-epoch"):
            if not equals:
                next(words, None)
        elif name != "--list":
            kept.append(word)
    return f"accelerate launch {shlex.join([sys.argv[0], *kept, *more])}"


def show_list(options: ReproductionOptions, study: Study | None) -> None:
    """Print the commands of a figure or a study, and what they cost to standard error."""
    recorded = read_results(study, options.results).finished if study else {}
    plan = study.plan if study else options.plan
    if study:
        chains = study.units(*share(options.shard or "1/1"))
        lines = study_commands(study, set(chains) - recorded.keys())
    else:
        chains = list(chains_of(options, plan))
        lines = commands(plan, chains)
    if options.seconds_per_epoch is None:
        rate = measured_rate(plan, LocalNodes(options.runs), recorded.values())
    else:
        rate = given_rate(options.seconds_per_epoch)
    print("".join(f"{line}\n" for line in lines), end="", flush=True)
    print("".join(f"# {line}\n" for line in costs(plan, chains, rate, recorded)), end="", file=sys.stderr)


def chains_of(options: ReproductionOptions, plan: FigurePlan) -> tuple[str, ...]:
    """Return the chains that this launch makes; ValueError for a shard that is none."""
    if options.shard is None:
        return tuple(plan.chains())
    if options.only:
        raise ValueError("--shard and --only: give one of them")
    return tuple(plan.shard(*share(options.shard)))


def share(text: str) -> tuple[int, int]:
    """Return i and n of i/n; ValueError for anything else."""
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit()):
        raise ValueError(f"--shard {text}: give i/n, such as 1/4")
    return int(index), int(count)


def finish(runner: FigureRunner, plan: FigurePlan, out: Path) -> None:
    """Write the page (rank 0), when MLflow has the runs if it can: the page names them by its run IDs."""
    runner.experiment.archive.delivery.settle()
    # not strict: a run that this launch only loaded has the tag of the launch that made it
    show(runner.experiment.store, plan, runner.settings, out, strict=False)


def study_named(name: str) -> Study:
    """Return the study of a name; ValueError with the known ones for another."""
    names = sorted(path.stem for path in STUDIES.glob("*.toml"))
    return read_study(STUDIES / f"{known('study', name, names)}.toml", SCALES)


def read_results(study: Study, results: Path) -> StudyResults:
    """Return what is recorded of a study and of those beside it."""
    return StudyResults.read(study, results, {name: study_named(name) for name in study.beside})


def make_study(options: ReproductionOptions, study: Study) -> None:
    """Make the chains of a study, or of a share of its trials, that are not recorded, and record each when it is."""
    index, count = (1, 1) if options.shard is None else share(options.shard)
    recorded = read_results(study, options.results).finished
    wanted = study.units(index, count)
    chains = [name for name in wanted if name not in recorded]
    recorded_already = f"{len(wanted) - len(chains)} of {len(wanted)} chains are recorded"
    _log.info(f"{recorded_already}; to make: {', '.join(chains) or 'none'}")
    if chains:
        make_chains(options, study, chains)
    if not is_first_process():
        return
    if options.shard is None or not chains:
        write_study_page(study, options.results)
    else:
        _log.info("this share is finished; when all are, the same command without --shard writes the page")


def make_again(options: ReproductionOptions, study: Study, chain: str) -> None:
    """Make a recorded chain again, and print its numbers beside the recorded ones; nothing is recorded."""
    recorded = finished_chains(study, options.results)
    if not recorded:
        raise ValueError(f"no whole chain of the study {study.name} is recorded in {options.results}")
    before = recorded[known("recorded chain", chain, sorted(recorded))]
    check_made_anew(LocalNodes(options.runs), before, options.runs)

    def compared(experiment: Experiment, made: MadeChain) -> list[dict[str, str]]:
        check_made_anew(experiment.store.local, before, options.runs)  # nor fetched from MLflow
        return compare_again(experiment.store, before, made)

    with launch(options.config(study.plan.scale.config)) as experiment:

        def show_rows(made: MadeChain) -> None:
            rows = experiment.world.on_main(lambda: compared(experiment, made))
            if rows:
                print_table(rows, numbers=("recorded", "repeated"), whole=("run",))

        FigureRunner(experiment, study.plan).make([chain], show_rows)


def write_study_page(study: Study, results: Path) -> None:
    """Write the page of a study from its records; this needs no run and no data."""
    directory = directory_of(study.name, results).parent
    write_page(read_results(study, results), directory)
    print_markdown((directory / "page.md").read_text())
    print(f"page, tables and figure: {directory}")


def make_chains(options: ReproductionOptions, study: Study, chains: Sequence[str]) -> None:
    """Make chains in one launch."""
    with launch(options.config(study.plan.scale.config)) as experiment:
        world = experiment.world
        chains = world.share_text(" ".join(chains)).split()  # another launch may have recorded one meanwhile

        def record(made: MadeChain) -> None:
            path = world.on_main(lambda: record_chain(experiment, study, made, options.results))
            _log.info(f"{made.name} is finished: its records are in {path}")

        FigureRunner(experiment, study.plan).make(chains, record)


def is_first_process() -> bool:
    """Whether this process of a launch is the one that prints and writes pages; before `launch` and after it."""
    return int(os.environ.get("RANK", 0)) == 0


def check_options(options: ReproductionOptions) -> None:
    """Raise ValueError unless a figure or a study is named, and for options that a study would not heed."""
    if bool(options.figure) == bool(options.study):
        raise ValueError(f"give a FIGURE ({', '.join(FIGURES)}) or --study NAME")
    if options.study is None:
        if options.again:
            raise ValueError("--again makes a recorded chain of a study again: give --study NAME, too")
        return
    if options.again and (options.shard or options.list):
        raise ValueError("--again makes one chain: leave out --shard and --list")
    usual = ReproductionOptions()
    names = [one.name for one in fields(options) if one.name not in (*_OF_STUDIES, *_OF_LAUNCH)]
    if other := [name for name in names if getattr(options, name) != getattr(usual, name)]:
        changed = [name for name, value in vars(options.changes).items() if value is not None]
        words = [name for one in other for name in (changed if one == "changes" else [one])]
        raise ValueError(
            f"{', '.join('--' + name.replace('_', '-') for name in words)}: a study's settings stand in its plan, "
            f"{STUDIES / options.study}.toml; leave this out, or write a plan of another name"
        )


def main() -> None:
    """Make the runs of a figure or study, or a share of them, then its page."""
    with clear_errors():
        options = parse(ReproductionOptions, __doc__)
        check_options(options)
        study = None if options.study is None else study_named(options.study)
        if options.list:
            show_list(options, study)
            return
        if study is not None:
            if options.again:
                make_again(options, study, options.again)
            else:
                make_study(options, study)
            return
        plan = options.plan
        chains = chains_of(options, plan)
        with launch(options.config(plan.scale.config)) as experiment:
            others = plan.scale.used_on
            runner = FigureRunner(experiment, plan, experiment.beside(options.config(others)) if others else None)
            if options.only:
                runner.make_only(options.only)
                return
            _log.info(f"{len(chains)} searches or dense trainings with all that is made from them: {', '.join(chains)}")
            runner.make(chains)
            if options.shard is None:
                experiment.world.on_main(lambda: finish(runner, plan, options.out))
            else:
                _log.info("this share is finished; when all are, the same command without --shard writes the page")


if __name__ == "__main__":
    main()
