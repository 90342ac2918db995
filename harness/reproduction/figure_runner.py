"""Make all unfinished runs of a plan: searches, final trainings and comparisons."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from harness.config import ComparisonConfig, Kind
from harness.experiment.comparison import Comparison, compare, compare_initial_norm, compare_signed_init
from harness.experiment.experiment import Experiment
from harness.experiment.final import Trial, check_carries_over, final_training
from harness.experiment.search import search
from harness.pruning import METHODS
from harness.reproduction.figure_plan import FigurePlan, Pair, Training
from harness.runs.run import FinishedRun


@dataclass(frozen=True)
class MadeChain:
    """All runs from one search, or the dense trainings of one trial."""

    name: str
    levels: tuple[FinishedRun, ...]
    """Levels of the search from level 0; empty for dense trainings."""
    trained: Mapping[Training, FinishedRun]
    compared: Mapping[Pair, Comparison | None]


class FigureRunner:
    """Make the runs of a plan in one launch; finished runs are cache hits.

    Args:
        experiment: The experiment of the searches.
        plan: The plan.
        used_on: The experiment of the final trainings, if they use another data set; by default `experiment`.
    """

    def __init__(self, experiment: Experiment, plan: FigurePlan, used_on: Experiment | None = None) -> None:
        self.experiment, self.plan, self.used_on = experiment, plan, used_on or experiment
        check_carries_over(self.used_on, experiment.archive.template.params)  # fail before the first search
        self._levels: dict[str, list[FinishedRun]] = {}
        self._trained: dict[Training, FinishedRun] = {}

    @property
    def settings(self) -> set[str]:
        """Tags `settings` of its runs, for `collect`."""
        return {one.common.tags["settings"] for one in (self.experiment, self.used_on)}

    def make(self, chains: Iterable[str], on_chain: Callable[[MadeChain], None] = lambda made: None) -> None:
        """Make whole chains one by one, with their comparisons; call `on_chain` after each."""
        all_chains = self.plan.chains()
        for chain in chains:
            trained = {training: self.train(training) for training in all_chains[chain]}
            compared = {pair: self.compare(pair) for pair in self.plan.pairs() if pair.first.chain == chain}
            on_chain(MadeChain(chain, tuple(self._levels.get(chain, ())), trained, compared))
            self._levels.pop(chain, None)  # free memory: no other chain needs these networks
            self._trained = {one: node for one, node in self._trained.items() if one.chain != chain}

    def make_only(self, names: Collection[str]) -> None:
        """Make single runs by name with their parents; raise LookupError for a name outside the plan."""
        unknown = sorted(set(names) - set(self.plan.names()))
        if unknown:
            raise LookupError(f"no run {', '.join(unknown)} in this plan; --list prints all names")
        for chain, trainings in self.plan.chains().items():
            if f"{chain}-search" in names:
                self.search(trainings)
            for training in trainings:
                if str(training) in names:
                    self.train(training)
        for pair in self.plan.pairs():
            if str(pair) in names:
                self.compare(pair)

    def search(self, trainings: list[Training]) -> None:
        """Find every ticket of a chain."""
        for training in {one.level: one for one in trainings}.values():
            self.ticket(training)

    def levels(self, training: Training) -> list[FinishedRun]:
        """Make or load the search of a training's chain, down to its deepest level."""
        assert training.curve is not None
        chain = training.chain
        if chain not in self._levels:
            deepest = max(one.level for one in self.plan.chains()[chain])
            self._levels[chain] = search(self._of(self.experiment, training, deepest)).levels
        return self._levels[chain]

    def ticket(self, training: Training) -> FinishedRun:
        """Return the level that a training starts from."""
        assert training.curve is not None
        if METHODS[training.curve.method].searches_one_density:
            own = self.plan.search_config(training.curve, training.level)
            experiment = self._of(self.experiment, training, training.level)
            return search(experiment.using(gem_miner=own.gem_miner, densities=own.densities)).ticket
        return self.levels(training)[training.level]

    def train(self, training: Training) -> FinishedRun:
        """Make or load one final training; kind "level" returns the level itself."""
        if training in self._trained:
            return self._trained[training]
        if training.kind == "level":
            node = self.ticket(training)
        else:
            dense = training.curve is None
            using = self.used_on if dense else self._of(self.used_on, training)
            if training.epochs is not None:
                using = using.using(final=using.config.final.of_length(training.epochs))
            ticket = None if dense else self.ticket(training)
            node = final_training(using, self._trial(training), ticket)
        self._trained[training] = node
        return node

    def compare(self, pair: Pair) -> Comparison | None:
        """Make or load one comparison; return None on ranks other than 0."""
        experiment = self._of(self.used_on, pair.first)
        first, second = self.train(pair.first), self.train(pair.second)
        if pair.question == "norm_init":
            return compare_initial_norm(experiment, first, ComparisonConfig())
        if pair.init_seed is not None:
            return compare_signed_init(experiment, first, pair.init_seed, ComparisonConfig())
        return compare(experiment, first, second, pair.question, ComparisonConfig())

    @staticmethod
    def _of(experiment: Experiment, training: Training, num_levels: int | None = None) -> Experiment:
        """Return the experiment with method, seeds and α of the search behind a training."""
        seed, curve = training.search_seed, training.curve
        method, alpha = (None, None) if curve is None else (curve.method, curve.alpha)
        return experiment.using(method, init_seed=seed, sgd_seed=seed, alpha=alpha, num_levels=num_levels)

    def _trial(self, training: Training) -> Trial:
        # Kinds without a fresh θ_init have no init_seed.
        seeds = (training.init_seed or 0, training.sgd_seed)
        return Trial(cast(Kind, training.kind), *seeds, initialisation=training.initialisation)
