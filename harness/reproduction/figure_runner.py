"""Make the runs of a plan: every search, final training and comparison that is not finished."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
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
    """All runs made from one search, or one trial's dense trainings."""

    name: str
    levels: tuple[FinishedRun, ...]
    """Of the search, level 0 first; none for dense trainings."""
    trained: Mapping[Training, FinishedRun]
    compared: Mapping[Pair, Comparison | None]


class FigureRunner:
    """Makes the runs of a plan in one launch; finished ones are loaded, so a second launch only reads.

    `used_on` is the experiment of the final trainings, where tickets go to another data set than their own.
    """

    def __init__(self, experiment: Experiment, plan: FigurePlan, used_on: Experiment | None = None) -> None:
        self.experiment, self.plan, self.used_on = experiment, plan, used_on or experiment
        check_carries_over(self.used_on, experiment.archive.template.params)  # before anything is searched
        self._levels: dict[str, list[FinishedRun]] = {}
        self._trained: dict[Training, FinishedRun] = {}

    @property
    def settings(self) -> set[str]:
        """The tags `settings` of the runs that it makes, for `collect`."""
        return {one.common.tags["settings"] for one in (self.experiment, self.used_on)}

    def make(self, chains: Iterable[str], on_chain: Callable[[MadeChain], None] = lambda made: None) -> None:
        """Make whole chains, one after another, with the comparisons within each; `on_chain` is told of each."""
        all_chains = self.plan.chains()
        for chain in chains:
            trained = {training: self.train(training) for training in all_chains[chain]}
            compared = {pair: self.compare(pair) for pair in self.plan.pairs() if pair.first.chain == chain}
            on_chain(MadeChain(chain, tuple(self._levels.get(chain, ())), trained, compared))
            self._levels.pop(chain, None)  # networks of a search are large, and no other chain needs them
            self._trained = {one: node for one, node in self._trained.items() if one.chain != chain}

    def make_only(self, names: Collection[str]) -> None:
        """Make single runs by name, and the runs they need; LookupError for a name that is not in the plan."""
        unknown = sorted(set(names) - set(self.plan.names()))
        if unknown:
            raise LookupError(f"no run {', '.join(unknown)} in this plan; --list shows their names")
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
        """Make or load the search of a training's chain, to the deepest level that the chain needs."""
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
        """Make one final training, or return the level itself for kind "level"."""
        if training in self._trained:
            return self._trained[training]
        if training.kind == "level":
            node = self.ticket(training)
        else:
            dense = training.curve is None
            using = self.used_on if dense else self._of(self.used_on, training)
            if training.epochs is not None:
                using = using.using(final=replace(using.config.final, epochs=training.epochs))
            ticket = None if dense else self.ticket(training)
            node = final_training(using, self._trial(training), ticket)
        self._trained[training] = node
        return node

    def compare(self, pair: Pair) -> Comparison | None:
        """Make one comparison; None except on rank 0."""
        experiment = self._of(self.used_on, pair.first)
        first, second = self.train(pair.first), self.train(pair.second)
        if pair.question == "norm_init":
            return compare_initial_norm(experiment, first, ComparisonConfig())
        if pair.init_seed is not None:
            return compare_signed_init(experiment, first, pair.init_seed, ComparisonConfig())
        return compare(experiment, first, second, pair.question, ComparisonConfig())

    @staticmethod
    def _of(experiment: Experiment, training: Training, num_levels: int | None = None) -> Experiment:
        """Return an experiment with the search in mind that a training's ticket is from."""
        seed, curve = training.search_seed, training.curve
        method, alpha = (None, None) if curve is None else (curve.method, curve.alpha)
        return experiment.using(method, init_seed=seed, sgd_seed=seed, alpha=alpha, num_levels=num_levels)

    def _trial(self, training: Training) -> Trial:
        # a kind that draws no θ_init has no seed of one
        seeds = (training.init_seed or 0, training.sgd_seed)
        return Trial(cast(Kind, training.kind), *seeds, initialisation=training.initialisation)
