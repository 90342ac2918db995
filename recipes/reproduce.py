"""Make a figure or table of the paper: run the missing trainings, then write plots, tables and a result page.

Figures    fig2 to fig6, table1 and table2 of the paper
           claims, rewinding, short_levels: statements of the paper's text
           gem_miner: the figure of Gem-Miner's paper
           fig4_equal, controls, transfer: our own questions
Studies    plans of recipes/studies, analysed when all their runs are recorded
Expected   the results so far are in docs/results.md
Time       --list prints the epochs and an estimate in hours
Hardware   one GPU for --scale paper. A CPU is enough for --scale small and smoke
Resume     run the same command again. It makes the missing runs only
Launch     python recipes/reproduce.py fig3 --dataset cifar100 --network resnet50_cifar
           python recipes/reproduce.py table2 --network mobilenet_v2 --data-directory /data
           accelerate launch --config_file recipes/launch/gpu_8.yaml recipes/reproduce.py table2 --sync-batchnorm
           python recipes/reproduce.py fig3 --scale small --dataset fashion_mnist_small
           python recipes/reproduce.py fig3 --list          # one launch command for each run
           python recipes/reproduce.py fig3 --shard $i/$n   # a share of the runs, for example in a Slurm array
           python recipes/reproduce.py fig3 --jobs 8        # 8 processes on this node: one for each GPU, or CPU cores
           python recipes/reproduce.py --study depth

A figure's page is written to results/ and to the lineage, a study's to studies/NAME below --results.
`python tools/report.py` writes a page again without training.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path

from harness.cli.errors import clear_errors
from harness.cli.options import answer_help, parse
from harness.common.launched import launcher_number
from harness.common.logging import progress
from harness.common.optional import require
from harness.common.process import end_with_parent
from harness.common.program import again, own_process
from harness.common.tables import print_table
from harness.config import known
from recipes.presets.figure_options import (
    RESULTS,
    STUDIES,
    ChangedSettings,
    FigureOptions,
    ReproductionOptions,
    check_subject,
)

if __name__ == "__main__":  # before the imports that load torch
    end_with_parent()
    answer_help(ReproductionOptions, __doc__)

from harness.cli.launch import launch
from harness.data import choose_loader, verify_data
from harness.experiment.experiment import Experiment
from harness.lineage.nodes.local_files import LocalNodes
from harness.reproduction.costs import costs, given_rate, measured_rate
from harness.reproduction.figure_plan import FigurePlan
from harness.reproduction.figure_runner import FigureRunner, MadeChain
from harness.reproduction.job import Job
from harness.reproduction.jobs import Jobs, own_devices
from harness.reproduction.report import page_name, show
from harness.reproduction.study import Study
from harness.reproduction.study_records import (
    check_made_anew,
    compare_again,
    finished_chains,
    record_chain,
)
from recipes.presets.studies import read_results, study_named, write_study_page

__all__ = ["RESULTS", "STUDIES", "ChangedSettings", "FigureOptions", "ReproductionOptions", "commands", "main"]

_log = logging.getLogger("harness.recipes.reproduce")
_OF_STUDIES = ("study", "results", "again", "list", "seconds_per_epoch", "shard", "jobs", "jobs_per_gpu", "figure")
_OF_LAUNCH = ("runs", "experiment", "offline", "data_directory", "loader", "num_workers", "probe")
"""Options that change no number. A study's plan sets all others."""
_INSTEAD = {
    "only": "--shard I/N makes a share of the trials, as --list prints it",
    "out": "--results chooses the directory of records and page",
}
"""Options of figures that a study does not have → the option that a study has instead."""


def commands(plan: FigurePlan, chains: Collection[str] | None = None) -> list[str]:
    """Return one launch command for each run of the plan, or of some chains.

    Each command has this launch's options and the name of its run.
    """
    return [_command("--only", name) for name in plan.names(chains)]


def study_commands(study: Study, chains: Collection[str]) -> list[str]:
    """Return one launch command for each trial that has one of these chains."""
    trials = list(study.plan.trials)
    wanted = {found[0].trial for name, found in study.plan.chains().items() if name in chains}
    return [_command("--shard", f"{trials.index(trial) + 1}/{len(trials)}") for trial in sorted(wanted)]


def _command(*more: str) -> str:
    """Return this launch's command with `more` words and without the options of --list and --jobs."""
    return again([*_options("--shard", "--seconds-per-epoch", "--jobs", "--jobs-per-gpu"), *more])


def _options(*without: str) -> list[str]:
    """Return this launch's options, without these and their values, and without --list."""
    words: Iterator[str] = iter(sys.argv[1:])
    kept: list[str] = []
    for word in words:
        name, equals, _ = word.replace("_", "-").partition("=")
        if name in without:
            if not equals:
                next(words, None)
        elif name != "--list":
            kept.append(word)
    return kept


def show_list(options: ReproductionOptions, study: Study | None) -> None:
    """Print the launch commands of a figure or study. Print their cost to standard error."""
    # Phase: find the runs that this launch would make.
    recorded = read_results(study, options.results).finished if study else {}
    plan = study.plan if study else options.plan
    if study:
        chains = study.units(*share(options.shard or "1/1"))
        lines = study_commands(study, set(chains) - recorded.keys())
    else:
        chains = list(chains_of(options, plan))
        lines = commands(plan, chains)

    # Phase: estimate the cost, and print.
    if options.seconds_per_epoch is None:
        rate = measured_rate(plan, LocalNodes(options.runs), recorded.values())
    else:
        rate = given_rate(options.seconds_per_epoch)
    print("".join(f"{line}\n" for line in lines), end="", flush=True)
    print("".join(f"# {line}\n" for line in costs(plan, chains, rate, recorded, options.jobs)), end="", file=sys.stderr)


def chains_of(options: ReproductionOptions, plan: FigurePlan) -> tuple[str, ...]:
    """Return the chains that this launch makes."""
    if options.shard is None:
        return tuple(plan.chains())
    if options.only:
        raise ValueError("--shard and --only exclude each other: give one of them")
    return tuple(plan.shard(*share(options.shard)))


def share(text: str) -> tuple[int, int]:
    """Return i and n of the text i/n. Raise ValueError for any other text."""
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit()):
        raise ValueError(f"--shard {text}: give i/n, such as 1/4")
    return int(index), int(count)


def finish(runner: FigureRunner, plan: FigurePlan, out: Path) -> None:
    """Deliver the runs, then write the page (rank 0). The page names runs by their MLflow run IDs."""
    runner.experiment.archive.delivery.settle()
    # strict=False: a loaded run has the settings tag of the launch that made it
    show(runner.experiment.store, plan, runner.settings, out, strict=False)


def make_study(options: ReproductionOptions, study: Study) -> None:
    """Make and record the missing chains of a study, or of a share of its trials."""
    index, count = (1, 1) if options.shard is None else share(options.shard)
    recorded = read_results(study, options.results).finished
    wanted = study.units(index, count)
    chains = [name for name in wanted if name not in recorded]
    recorded_already = f"{len(wanted) - len(chains)} of {len(wanted)} chains are recorded"
    _log.info(f"{recorded_already}. Missing chains: {', '.join(chains) or 'none'}")
    if chains and options.jobs > 1:
        run_jobs(options, study.plan, chains, f"study-{study.name}")
    elif chains:
        make_chains(options, study, chains)
    if not is_first_process() or Job.current():
        return
    if options.shard is None or not chains:
        write_study_page(study, options.results)
    else:
        _log.info("this share is finished. After all shares, run the same command without --shard to write the page")


def run_jobs(options: ReproductionOptions, plan: FigurePlan, chains: Sequence[str], name: str) -> None:
    """Make chains in several processes on this node; errors as in `Jobs.run`.

    Args:
        name: The name of the directory for the jobs' logs.
    """
    # Phase: hash the data once, since the jobs then find it verified.
    devices = own_devices(min(options.jobs, len(chains)), options.jobs_per_gpu)
    for config in dict.fromkeys(options.config(one).data for one in (plan.scale.config, plan.scale.finals)):
        loader = choose_loader(config.name, config.directory) if config.loader == "auto" else config.loader
        verify_data(config.name, config.directory, loader)

    # Phase: run the jobs.
    part = "" if options.shard is None else f"-{options.shard.replace('/', '-of-')}"
    jobs = Jobs(options.runs / "jobs" / f"{name}{part}", plan.by_cost(chains), devices)
    jobs.run([*own_process(), *_options("--jobs", "--jobs-per-gpu")], options.runs)


def make_again(options: ReproductionOptions, study: Study, chain: str) -> None:
    """Make a recorded chain again and print its numbers beside the recorded ones. Record nothing."""
    recorded = finished_chains(study, options.results)
    if not recorded:
        raise ValueError(f"{options.results} has no complete chain of the study {study.name}")
    before = recorded[known("recorded chain", chain, sorted(recorded))]
    check_made_anew(LocalNodes(options.runs), before, options.runs)

    def compared(experiment: Experiment, made: MadeChain) -> list[dict[str, str]]:
        check_made_anew(experiment.store.local, before, options.runs)  # MLflow may have delivered a copy
        return compare_again(experiment.store, before, made)

    with launch(options.config(study.plan.scale.config)) as experiment:

        def show_rows(made: MadeChain) -> None:
            rows = experiment.world.on_main(lambda: compared(experiment, made))
            if rows:
                print_table(rows, numbers=("recorded", "repeated"), whole=("run",))

        FigureRunner(experiment, study.plan).make([chain], show_rows)


def make_chains(options: ReproductionOptions, study: Study, chains: Sequence[str]) -> None:
    """Make and record chains in one launch."""
    with launch(options.config(study.plan.scale.config)) as experiment:
        world = experiment.world
        # Ranks may have read the records at different times.
        taken = taken_of(study.plan, world.share_text(" ".join(chains)).split())

        def record(made: MadeChain) -> None:
            path = world.on_main(lambda: record_chain(experiment, study, made, options.results))
            bar.update()
            if world.is_main:
                _log.info(f"chain {made.name} is finished, recorded in {path}")

        with progress("chains", len(chains), "chains", shown=experiment.shows_progress) as bar:
            FigureRunner(experiment, study.plan).make(taken, record)


def taken_of(plan: FigurePlan, chains: Sequence[str]) -> Iterable[str]:
    """Return the chains for this process to make: in a job, those that no other job has taken."""
    job = Job.current()
    return chains if job is None else job.take([*plan.by_cost(chains)])


def is_first_process() -> bool:
    """Return whether this process prints and writes pages. Valid before, during and after `launch`."""
    return launcher_number("RANK", 0) == 0


def check_options(options: ReproductionOptions) -> None:
    """Raise ValueError unless the options name a figure or a study, and nothing that a study's plan sets."""
    if options.jobs < 1 or options.jobs_per_gpu < 1:
        raise ValueError("--jobs and --jobs-per-gpu must be 1 or more")
    if options.jobs > 1 and (options.only or options.again):
        raise ValueError("--jobs makes whole chains: remove --only and --again")
    if options.jobs > 1 and launcher_number("WORLD_SIZE", 1) > 1:
        raise ValueError("--jobs starts processes of its own: start with `python`, without a launcher")
    check_subject(options.figure, options.study, options.results)
    if options.study is None:
        if options.again:
            raise ValueError("--again needs --study NAME: it makes a recorded chain of a study again")
        if options.list and options.only:
            raise ValueError("--list names all runs, and --only makes some of them: give one of the two")
        return
    if options.again and (options.shard or options.list):
        raise ValueError("--again makes one chain: remove --shard and --list")

    # The plan of a study sets everything else. Where a study has an option of its own for it, name that.
    usual = ReproductionOptions()
    names = [one.name for one in fields(options) if one.name not in (*_OF_STUDIES, *_OF_LAUNCH)]
    if other := [name for name in names if getattr(options, name) != getattr(usual, name)]:
        changed = [name for name, value in vars(options.changes).items() if value is not None]
        words = [name for one in other for name in (changed if one == "changes" else [one])]
        given, plan = ", ".join("--" + name.replace("_", "-") for name in words), f"{STUDIES / options.study}.toml"
        if advice := [advice for name, advice in _INSTEAD.items() if name in other]:
            rest = f", and the plan {plan} sets the rest" if len(advice) < len(words) else ""
            raise ValueError(f"{given}: no option of a study; {', and '.join(advice)}{rest}")
        raise ValueError(f"{given}: the plan {plan} sets this. Remove the option, or write a plan of another name")


def main() -> None:
    """Make the runs of a figure or study, or a share of them, then write its page."""
    with clear_errors():
        options = parse(ReproductionOptions, __doc__)
        check_options(options)
        study = None if options.study is None else study_named(options.study)
        if study is None:
            options.check_width()
        if options.list:
            show_list(options, study)
            return
        for library in ("matplotlib", "scipy", "statsmodels"):
            require(library, "a figure or a study")
        if study is not None:
            if options.again:
                make_again(options, study, options.again)
            else:
                make_study(options, study)
            return

        # Phase: make the runs of a figure, then its page.
        plan = options.plan
        chains = chains_of(options, plan)
        if options.jobs > 1:
            run_jobs(options, plan, chains, page_name(plan))
            if options.shard is not None:
                return
        with launch(options.config(plan.scale.config)) as experiment:
            others = plan.scale.used_on
            runner = FigureRunner(experiment, plan, experiment.beside(options.config(others)) if others else None)
            if options.only:
                runner.make_only(options.only)
                return
            if options.jobs == 1:
                about = f"{len(chains)} chains (a search or dense trainings, with their children)"
                _log.info(f"{about}: {', '.join(chains)}")
                with progress("chains", len(chains), "chains", shown=experiment.shows_progress) as bar:
                    runner.make(taken_of(plan, chains), lambda made: bar.update())
            if Job.current():
                return
            if options.shard is None:
                experiment.world.on_main(lambda: finish(runner, plan, options.out))
            else:
                _log.info(
                    "this share is finished. After all shares, run the same command without --shard to write the page"
                )


if __name__ == "__main__":
    main()
