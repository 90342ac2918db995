"""Start and end of a launch: processes, store, experiment.

The parts are closed in the reverse order.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from harness.analysis.summary import epsilon_from_dense
from harness.cli.options import RunPair, StabilityPair
from harness.cli.resolve import resolve_initialisation, resolve_key, resolve_network, resolve_record, resolve_ticket
from harness.cli.terminal import print_comparison, print_training
from harness.config import NETWORKS_OWN, SearchConfig, TicketConfig
from harness.distributed.status import reported
from harness.distributed.world import World
from harness.experiment.comparison import Question, compare
from harness.experiment.experiment import Experiment, Initialisation
from harness.experiment.final import Trial, final_training
from harness.lineage.store import LineageStore, open_store
from harness.runs.run import FinishedRun
from harness.training.compiled import num_graphs

_log = logging.getLogger(__name__)


def compare_pair(question: Question, pair: RunPair) -> None:
    """Measure, record and print the barrier between two runs (see `harness.cli.commands.compare_runs`)."""
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
        raise ValueError(f"run {text} ({record.name}) is not a dense training")
    for what, own in (
        ("data_digest", experiment.source.content_digest),
        ("model", experiment.architecture.definition.label),
    ):
        if record.tags.get(what) != own:
            raise ValueError(f"run {text} ({record.name}) differs in {what} from the pair; choose others for --dense")
    return record.last_metrics()["test_error_percent"]


@contextmanager
def launch(config: SearchConfig, *, searches: bool = False) -> Iterator[Experiment]:
    """Open the experiment of one launch: processes, store, data and network.

    At the end of the block, the runs are delivered to MLflow and the process group is closed.

    Args:
        config: The settings of a search, and of the final trainings that use it.
        searches: The launch is one search, so that the first log line shows its method and number of levels.

    Yields:
        The experiment for `search`, `final_training` and `compare`.

    Raises:
        ValueError: Settings contradict each other, or the data are not prepared.
        LookupError: `config.initialisation` names an unknown run.
        ConnectionError: The tracking server is unreachable. `offline` does not need it.

    Example:
        >>> with harness.launch(config) as experiment:
        ...     print(experiment.spec.name, experiment.train_feed.steps_per_epoch)
        digits 5
    """
    # Phase: processes, then store, then data and network.
    with _processes(config, config.precision, deterministic=config.deterministic) as world:
        store = store_of(config.runs, config.experiment, offline=config.offline)
        world.on_main(store.require)
        begun = resolve_initialisation(world, store, config.initialisation)
        network = resolve_network(world, config.model)
        experiment = Experiment(world, store, config, begun, network=network)
        work, levels = f"{experiment.common.network} on {config.data.name}", 1 if config.one_shot else config.num_levels
        world.announce(f"{config.method}, {work}, 1 + {levels} levels" if searches else work, config.runs)
        with experiment.archive.delivery.working():
            yield experiment


@contextmanager
def launch_ticket(
    config: TicketConfig, kinds: tuple[str, ...] = ("level",)
) -> Iterator[tuple[Experiment, FinishedRun]]:
    """Open the experiment that a run's record describes, and load the run.

    Args:
        config: The run and the settings that override its record.
        kinds: Kinds of runs that the command accepts.

    Yields:
        The experiment and the run.

    Raises:
        ValueError: The run has another kind, or the data are not those of the run.
    """
    # Phase: processes and store. The run's record then gives the settings.
    with _processes(config, precision=None) as world:
        store = store_of(config.runs, config.experiment, offline=config.offline)
        world.on_main(store.require)
        key, settings, network = resolve_ticket(world, store, config, kinds)
        if settings.deterministic:
            world.make_deterministic()
        world.use(settings.precision)

        # Phase: data, network and the run itself.
        experiment = Experiment(world, store, settings, network=network)
        with experiment.archive.delivery.working():
            ticket = experiment.archive.load(key, fitting=False)
            if config.data is None:
                _check_data(experiment, ticket)  # first: data of other classes would not fit, which says less
                experiment.archive.require_fit(ticket)
            yield experiment, ticket


def train_ticket(config: TicketConfig) -> None:
    """Run one final training of a ticket and print its test error (paper, section 4)."""
    with launch_ticket(config) as (experiment, ticket):
        settings = experiment.config
        length = f"{settings.final.epochs} epoch{'s' * (settings.final.epochs != 1)}"
        work = f"{config.kind}, {experiment.common.network} on {settings.data.name}, {length}"
        experiment.world.announce(work, config.runs)
        begun: str | Initialisation = NETWORKS_OWN
        if config.kind != "retrain":  # retrain draws no θ_init
            begun = resolve_initialisation(experiment.world, experiment.store, config.initialisation)
        trial = Trial(
            config.kind,
            config.init_seed,
            config.sgd_seed,
            unpruned_signs=config.unpruned_signs,
            signs=config.signs,
            initialisation=begun,
        )
        experiment.archive.closing_level = logging.DEBUG  # the command prints the result itself
        trained = final_training(experiment, trial, ticket, same_init=config.same_init)
        print_training(experiment, trained, config.sgd_seed)


@contextmanager
def _processes(
    config: SearchConfig | TicketConfig, precision: str | None, *, deterministic: bool = False
) -> Iterator[World]:
    """Join the other processes, listen for stop signals, and write the status file."""
    world = World(precision, deterministic=deterministic, stuck_after=config.stuck_after)
    try:
        if world.is_main:
            try:
                config.runs.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OSError(f"cannot create {config.runs}: {error.strerror}; choose another --runs") from error
        with world.stop.listening(), reported(config.runs, world) if world.is_main else nullcontext():
            yield world
        if graphs := num_graphs():
            _log.debug(f"compiled {graphs} graphs")
    finally:
        world.close()


def store_of(runs: Path, experiment: str, *, offline: bool = False) -> LineageStore:
    """Open the lineage store: local runs, and MLflow at MLFLOW_TRACKING_URI or sqlite:///mlflow.db."""
    return open_store(runs, experiment=experiment, offline=offline)


def _check_data(experiment: Experiment, ticket: FinishedRun) -> None:
    """Raise ValueError if the data are not those that the ticket was made from."""

    def check() -> None:
        assert ticket.record is not None
        recorded, found = ticket.record.tags["data_digest"], experiment.source.content_digest
        home = experiment.config.data.directory / experiment.spec.name
        if recorded != found:
            raise ValueError(
                f"{ticket.record.name!r} was made from data {recorded[:12]}…, but {home} has {found[:12]}…; "
                "prepare the recorded data again, or set --data-directory"
            )

    experiment.world.on_main(check)
