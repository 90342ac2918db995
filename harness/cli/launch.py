"""From a command line to an experiment: parse, start the processes, open the store, close in order."""

from __future__ import annotations

import logging
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from harness.analysis.summary import epsilon_from_dense
from harness.cli.errors import clear_errors
from harness.cli.options import OneRun, RunPair, StabilityPair, TicketAndSeed, parse
from harness.cli.resolve import resolve_initialisation, resolve_key, resolve_record, resolve_ticket
from harness.cli.terminal import print_comparison, print_search, print_training
from harness.config import NETWORKS_OWN, SearchConfig, TicketConfig, known
from harness.distributed.launcher_settings import launcher_number
from harness.distributed.status import reported
from harness.distributed.world import World
from harness.experiment.comparison import Question, compare, compare_initial_norm, compare_signed_init
from harness.experiment.experiment import Experiment, Initialisation
from harness.experiment.final import Trial, final_training
from harness.experiment.search import search
from harness.lineage.store import LineageStore, open_store
from harness.runs.run import FinishedRun

_log = logging.getLogger(__name__)


def parse_network(
    description: str | None, presets: Sequence[SearchConfig], arguments: Sequence[str] | None = None
) -> SearchConfig:
    """Read the command line (or `arguments`) of a recipe that has settings for several networks, the first its default.

    `--network NAME` takes those of a network, which every other option then changes. A `--model.name` that has settings
    of its own here is refused: it would be trained with another network's.
    """
    names = [preset.model.name for preset in presets]
    chooser = ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--network", default=names[0])
    chosen, rest = chooser.parse_known_args(arguments)
    name = known("network", chosen.network, names)
    told = f"{description or ''}\n--network NAME takes the settings of: {', '.join(names)}. Below are those of {name}."
    settings = parse(SearchConfig, told, presets[names.index(name)], rest)
    other = settings.model.name
    if other != name and other in names:
        raise ValueError(
            f"--model.name {other} would be trained with the settings of {name}; say --network {other}, which takes "
            "its own, and change of them what you like"
        )
    if launcher_number("RANK", 0) == 0:
        foreign = "" if other == name else f" (this recipe has none for {other}: those of {name})"
        _log.info(f"settings: {_in_short(settings)}{foreign}")
    return settings


def _in_short(settings: SearchConfig) -> str:
    optim, final = settings.optim, settings.final
    epochs = f"{settings.warmup_epochs} + {settings.num_levels}·{settings.level_epochs}"
    return (
        f"{settings.model.name}, {optim.name}, lr {optim.lr:g}, weight decay {optim.weight_decay:g}, "
        f"batch {settings.global_batch_size}, epochs {epochs}, final {final.epochs} ({final.lr_schedule})"
    )


def run_search(description: str | None, default: SearchConfig | Sequence[SearchConfig]) -> None:
    """The whole of a recipe: read the options, search, say what was found and how to use it.

    `default` is the recipe's settings, or those for each of several networks (see `parse_network`).
    """
    with clear_errors():
        if isinstance(default, SearchConfig):
            settings = parse(SearchConfig, description, default)
        else:
            settings = parse_network(description, default)
        with launch(settings) as experiment:
            print_search(experiment, search(experiment))


def ask_initial_norm(description: str | None) -> None:
    """Read a level's run ID from the command line; print and record the barrier to its copy with ψ_init."""
    with clear_errors():
        asked = parse(OneRun, description)
        with launch_ticket(asked.ticket) as (experiment, ticket):
            result = compare_initial_norm(experiment, ticket, asked.comparison)
            if result is not None:
                print_comparison("norm_init", result, None, as_json=asked.json)


def ask_signed_init(description: str | None) -> None:
    """Read a level's run ID and a seed from the command line; print and record the barrier to abs(θ_init) ⊙ s."""
    with clear_errors():
        asked = parse(TicketAndSeed, description)
        with launch_ticket(asked.ticket) as (experiment, ticket):
            result = compare_signed_init(experiment, ticket, asked.init_seed, asked.comparison)
            if result is not None:
                print_comparison("signed_init", result, None, as_json=asked.json)


def compare_runs(question: Question, description: str | None) -> None:
    """Read two run IDs from the command line, compare them, print and record the barrier."""
    with clear_errors():
        pair = parse(StabilityPair if question == "stability" else RunPair, description)
        with launch_ticket(pair.ticket, kinds=("level", "training")) as (experiment, first):
            epsilon = experiment.world.on_main(lambda: _epsilon(experiment, pair))
            second = experiment.archive.load(resolve_key(experiment, pair.second))
            cross_init = isinstance(pair, StabilityPair) and pair.cross_init
            result = compare(experiment, first, second, question, pair.comparison, cross_init=cross_init)
            if result is not None:
                print_comparison(question, result, epsilon, as_json=pair.json)


def _epsilon(experiment: Experiment, pair: RunPair) -> float | None:
    if not pair.dense:
        return pair.epsilon
    return epsilon_from_dense([_dense_error(experiment, text) for text in pair.dense])


def _dense_error(experiment: Experiment, text: str) -> float:
    record = resolve_record(experiment.store, text)
    if record.tags.get("kind_of_training") != "dense":
        raise ValueError(f"run {text} ({record.name}) is no dense training")
    for what, own in (("data_digest", experiment.source.content_digest), ("model", experiment.config.model.name)):
        if record.tags.get(what) != own:
            raise ValueError(f"run {text} ({record.name}) has another {what}: its error says nothing about this pair")
    return record.last_metrics()["test_error_percent"]


@contextmanager
def launch(config: SearchConfig) -> Iterator[Experiment]:
    """Open the experiment of one launch: processes, store, data and network.

    At the end of the block the runs are delivered to MLflow and the process group is left in order.

    Args:
        config: The settings of a search, and of the final trainings that use it.

    Yields:
        The experiment that `search`, `final_training` and `compare` take.

    Raises:
        ValueError: Settings that contradict one another, or data that are not prepared.
        LookupError: `config.initialisation` names no run.
        ConnectionError: The tracking server gives no answer; `offline` does without it.

    Example:
        >>> with harness.launch(config) as experiment:
        ...     print(experiment.spec.name, experiment.train_feed.steps_per_epoch)
        digits 5
    """
    with _processes(config, config.precision, deterministic=config.deterministic) as world:
        store = store_of(config.runs, config.experiment, offline=config.offline)
        world.on_main(store.require)
        world.announce()
        begun = resolve_initialisation(world, store, config.initialisation)
        experiment = Experiment(world, store, config, begun)
        with experiment.archive.delivery.working():
            yield experiment


@contextmanager
def launch_ticket(
    config: TicketConfig, kinds: tuple[str, ...] = ("level",)
) -> Iterator[tuple[Experiment, FinishedRun]]:
    """Open the experiment that a ticket's run describes, with the ticket itself; a run of no such kind is refused."""
    with _processes(config, precision=None) as world:
        store = store_of(config.runs, config.experiment, offline=config.offline)
        world.on_main(store.require)
        key, settings = resolve_ticket(world, store, config, kinds)
        if settings.deterministic:
            world.make_deterministic()
        world.use(settings.precision)
        experiment = Experiment(world, store, settings)
        with experiment.archive.delivery.working():
            if config.data is None:
                ticket = experiment.archive.load(key)
                _check_data(experiment, ticket)
            else:
                ticket = experiment.archive.load(key, fitting=False)
            yield experiment, ticket


def train_ticket(config: TicketConfig) -> None:
    """Make one final training of a ticket, and print the result (method, section 4)."""
    with launch_ticket(config) as (experiment, ticket):
        experiment.world.announce()
        begun: str | Initialisation = NETWORKS_OWN
        if config.kind != "retrain":  # which draws no θ_init
            begun = resolve_initialisation(experiment.world, experiment.store, config.initialisation)
        trial = Trial(
            config.kind,
            config.init_seed,
            config.sgd_seed,
            unpruned_signs=config.unpruned_signs,
            signs=config.signs,
            initialisation=begun,
        )
        print_training(experiment, final_training(experiment, trial, ticket, same_init=config.same_init))


@contextmanager
def _processes(
    config: SearchConfig | TicketConfig, precision: str | None, *, deterministic: bool = False
) -> Iterator[World]:
    """Join the other processes, remember to stop when asked to, and report how it ended."""
    world = World(precision, deterministic=deterministic, stuck_after=config.stuck_after)
    try:
        with world.stop.listening(), reported(config.runs, world) if world.is_main else nullcontext():
            yield world
    finally:
        world.close()


def store_of(runs: Path, experiment: str, *, offline: bool = False) -> LineageStore:
    """Open the lineage store: local nodes in `runs`, MLflow at MLFLOW_TRACKING_URI or sqlite:///mlflow.db."""
    return open_store(runs, experiment=experiment, offline=offline)


def _check_data(experiment: Experiment, ticket: FinishedRun) -> None:
    """Refuse data other than those the ticket was made from."""

    def check() -> None:
        assert ticket.record is not None
        recorded, found = ticket.record.tags["data_digest"], experiment.source.content_digest
        if recorded != found:
            raise ValueError(
                f"{ticket.record.name!r} was made from data {recorded[:12]}…, but {experiment.config.data.directory} "
                f"now holds {found[:12]}…; prepare those data anew or give --data-directory"
            )

    experiment.world.on_main(check)
