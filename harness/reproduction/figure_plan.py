"""The trainings and comparisons of one figure, as plain data for launches and reports."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from harness.config import NETWORKS_OWN, GemMinerConfig, SearchConfig
from harness.data.spec import data_spec
from harness.models import build_model, classifier_of, partition_of
from harness.pruning import METHODS, PruningSchedule
from harness.reproduction.figure import DENSE, Curve, Figure

FINAL_SEEDS_FROM = 100
"""Trial t searches with init_seed and sgd_seed t, and trains with init_seed 100 + t: never the search's own."""


@dataclass(frozen=True)
class Scale:
    """Settings, levels and trials of a figure for one data set and network."""

    config: SearchConfig
    """Settings of the searches, and of the final trainings unless `used_on` is given."""
    levels: tuple[int, ...]
    """Levels with final trainings; the points of a curve."""
    barrier_level: int | None = None
    """Level of the comparisons (the paper's density 0.09 is level 11); None for no comparisons."""
    trials: int = 3
    first_trial: int = 1
    further_epochs: tuple[int, ...] = ()
    """Further lengths of every final training; the usual length is `finals.final.epochs`."""
    used_on: SearchConfig | None = None
    """Data set and settings of the final trainings, if they use another data set than the searches."""
    penalties: Mapping[int, float] = field(default_factory=dict)
    """Level → λ of Gem-Miner at the authors' densities; other levels use the λ of `config`."""
    reduction: str | None = None
    """Difference from the paper's settings, in words; None for the paper's settings."""
    variant: str = ""
    """Suffix of the page's directory, for levels or settings that differ from the scale's."""

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 1:
            raise ValueError(f"levels are {self.levels}; give levels of 1 and above")
        densities = self.config.densities
        if densities is not None and max(self.levels) > len(densities):
            raise ValueError(f"levels are {self.levels}; there are only {len(densities)} densities, one for each level")
        if self.trials < 1:
            raise ValueError(f"trials is {self.trials}; it must be 1 or more")

    @property
    def lengths(self) -> tuple[int | None, ...]:
        """Epochs of the final trainings; None is the usual number."""
        return (None, *self.further_epochs)

    @property
    def finals(self) -> SearchConfig:
        """Data set and settings of the final trainings."""
        return self.used_on or self.config

    def density(self, level: int) -> float:
        """Return the target density of a level."""
        return PruningSchedule.of(self.config).density(level)

    def gem_miner(self, level: int) -> GemMinerConfig:
        """Return the settings of Gem-Miner at a level."""
        own = self.config.gem_miner
        return replace(own, penalty=self.penalties.get(level, own.penalty))

    @property
    def all_levels(self) -> tuple[int, ...]:
        """Levels with final trainings or comparisons, rising."""
        return tuple(sorted({*self.levels, *([] if self.barrier_level is None else [self.barrier_level])}))


@dataclass(frozen=True)
class Training:
    """One final training of a plan (curve None: the dense network, level 0)."""

    trial: int
    curve: Curve | None
    level: int
    search_seed: int
    twin: bool = False
    """Whether it is the second training of its start, with another noise, for SGD-noise stability."""
    epochs: int | None = None
    """Length, if it is not the usual one."""

    @property
    def in_words(self) -> str:
        """The curve (or dense), with the number of epochs unless it is the usual one."""
        return str(self.curve or DENSE) + (f", {self.epochs} epochs" if self.epochs else "")

    @property
    def kind(self) -> str:
        """Kind of final training, "level" or "dense"."""
        return DENSE if self.curve is None else self.curve.kind

    @property
    def initialisation(self) -> str:
        """The scheme that draws a fresh θ_init."""
        return NETWORKS_OWN if self.curve is None else self.curve.initialisation

    @property
    def init_seed(self) -> int | None:
        """Seed of the fresh θ_init; None for kinds without one."""
        return None if self.kind in ("retrain", "level") else FINAL_SEEDS_FROM + self.trial

    @property
    def sgd_seed(self) -> int:
        """Seed of the noise u, shared by all kinds of a trial."""
        return FINAL_SEEDS_FROM + self.trial if self.twin else self.trial

    @property
    def chain(self) -> str:
        """Name of its chain: all runs from one search, which one launch makes in sequence."""
        return f"dense-t{self.trial}" if self.curve is None else f"{self._finder}-s{self.search_seed}"

    @property
    def _finder(self) -> str:
        """The finder without spaces and Greek letters, for file names."""
        return "" if self.curve is None else self.curve.finder.replace(" α=", "-alpha_")

    def __str__(self) -> str:
        words = [*([f"e{self.epochs}"] if self.epochs else []), f"t{self.trial}", *(["twin"] if self.twin else [])]
        if self.curve is not None:
            drawn = [] if self.initialisation == NETWORKS_OWN else [self.initialisation]
            words = [self._finder, f"L{self.level:02d}", self.kind, *drawn, *words]
        return "-".join([*([DENSE] if self.curve is None else []), *words])


@dataclass(frozen=True)
class Pair:
    """One comparison of a plan."""

    question: Literal["stability", "lmc", "norm_init", "signed_init"]
    first: Training
    second: Training
    """Equal to `first` if a ticket is compared with its copy (ψ_init, or its signs on a fresh θ_init)."""

    @property
    def init_seed(self) -> int | None:
        """Seed of the fresh θ_init of signed_init, as in the final trainings; None for other questions."""
        return FINAL_SEEDS_FROM + self.first.trial if self.question == "signed_init" else None

    def __str__(self) -> str:
        return f"{self.question}-{self.first}"


@dataclass(frozen=True)
class FigurePlan:
    """A figure at one scale."""

    figure: Figure
    scale: Scale
    shared_search: bool = False
    """One search for all trials, as in the authors' scripts; the finals differ in their seeds alone."""

    @property
    def subject(self) -> str:
        """Which network on which data, in words."""
        config, finals = self.scale.config, self.scale.finals
        width = f" (width {config.model.width})" if config.model.width else ""
        moved = "" if finals is config else f", used on {finals.data.name}"
        return f"{config.model.name}{width} on {config.data.name}{moved}"

    @property
    def trials(self) -> range:
        """Numbers of the trials, from 1."""
        return range(self.scale.first_trial, self.scale.first_trial + self.scale.trials)

    def search_seed(self, trial: int) -> int:
        """Return the init_seed and sgd_seed of a trial's search."""
        return 1 if self.shared_search else trial

    def search_config(self, curve: Curve, level: int) -> SearchConfig:
        """Return the settings of the search for a curve's ticket at `level`."""
        config = replace(self.scale.config, alpha=curve.alpha, gem_miner=self.scale.gem_miner(level))
        if not (self.figure.equal_weights and METHODS[curve.method].masks_classifier):
            return config
        levels = range(1, max(self.scale.all_levels) + 1)
        every = sum(self.num_weights)
        # The authors' rule freezes equal scores together, so it can keep fewer weights than the others have.
        exact = replace(config.gem_miner, freezing="exact")
        return replace(config, densities=tuple(self.weights(level) / every for level in levels), gem_miner=exact)

    @cached_property
    def num_weights(self) -> tuple[int, int]:
        """Number of prunable weights, and of the classifier's weights."""
        config, spec = self.scale.config, data_spec(self.scale.config.data.name)
        network = build_model(
            config.model.name,
            num_classes=spec.num_classes,
            channels=spec.channels,
            image_size=spec.image_size,
            width=config.model.width,
        )
        params = dict(network.named_parameters())
        prunable = sum(params[name].numel() for name in partition_of(config.model.name, network).prunable)
        return prunable, params[f"{classifier_of(config.model.name)}.weight"].numel()

    def weights(self, level: int) -> int:
        """Return the target number of weights of a level, the whole classifier included."""
        prunable, classifier = self.num_weights
        return round(self.scale.density(level) * prunable) + classifier

    @property
    def lengths(self) -> set[int]:
        """Epochs of all final trainings, dense ones included."""
        usual = self.scale.finals.final.epochs
        return {epochs or usual for epochs in (*self.scale.lengths, *self.dense_lengths)}

    def dense(self, epochs: int | None = None) -> list[Training]:
        """Return the dense trainings of one length, one for each trial."""
        return [Training(trial, None, 0, self.search_seed(trial), epochs=epochs) for trial in self.trials]

    @property
    def dense_lengths(self) -> tuple[int | None, ...]:
        """Epochs of the dense trainings: the usual lengths, then the total cost of the deepest ticket."""
        lengths, cost = self.scale.lengths, self.dense_at_ticket_cost
        return lengths if cost is None else (*lengths, cost)

    @property
    def dense_at_ticket_cost(self) -> int | None:
        """Total epochs of the deepest ticket, a length of the dense network; None if the figure has none."""
        if not self.figure.dense_at_ticket_cost:
            return None
        return self.ticket_epochs(max(self.scale.lengths, key=lambda one: one or self.scale.finals.final.epochs))

    def ticket_epochs(self, epochs: int | None) -> int:
        """Return the total epochs of the first method's deepest ticket: its search and a final training."""
        search = self._epochs_of_search(self.figure.curves[0], {max(self.scale.levels)})
        return search + (epochs or self.scale.finals.final.epochs)

    def of_curve(self, curve: Curve, level: int, *, twin: bool = False, epochs: int | None = None) -> list[Training]:
        """Return one training for each trial of a curve's ticket at `level`; kind "level" has one length."""
        length = None if curve.kind == "level" else epochs
        return [Training(trial, curve, level, self.search_seed(trial), twin, length) for trial in self.trials]

    def pairs(self) -> list[Pair]:
        """Return every comparison, by length, curve and trial."""
        # Phase: comparisons of final trainings.
        level = self.scale.barrier_level
        if level is None:
            return []
        pairs: list[Pair] = []
        for epochs in self.scale.lengths:
            for curve in self.figure.stability:
                once, twins = (self.of_curve(curve, level, twin=twin, epochs=epochs) for twin in (False, True))
                pairs += [Pair("stability", *two) for two in zip(once, twins, strict=True)]
            for curve in self.figure.connectivity:
                retrain = replace(curve, kind="retrain", initialisation=NETWORKS_OWN)
                ends = (self.of_curve(one, level, epochs=epochs) for one in (curve, retrain))
                pairs += [Pair("lmc", *two) for two in zip(*ends, strict=True)]

        # Phase: comparisons of tickets with their copies.
        for method in self.figure.initial_norm:
            pairs += [Pair("norm_init", one, one) for one in self.of_curve(Curve(method, "level"), level)]
        for method in self.figure.signed_init:
            pairs += [Pair("signed_init", one, one) for one in self.of_curve(Curve(method, "level"), level)]
        return pairs

    def trainings(self) -> list[Training]:
        """Return every final training once: dense, then by curve and level, then twins for comparisons."""
        shown = [
            one
            for curve in self.figure.curves
            for level in self.scale.levels
            for epochs in self.scale.lengths
            for one in self.of_curve(curve, level, epochs=epochs)
        ]
        dense = [one for epochs in self.dense_lengths for one in self.dense(epochs)]
        compared = [one for pair in self.pairs() for one in (pair.first, pair.second)]
        return list(dict.fromkeys([*dense, *shown, *compared]))

    def chains(self) -> dict[str, list[Training]]:
        """Return name → trainings of each chain."""
        chains: dict[str, list[Training]] = {}
        for training in self.trainings():
            chains.setdefault(training.chain, []).append(training)
        return chains

    def epochs(self, chain: str) -> int:
        """Return the epochs of a chain's search and final trainings."""
        trainings = self.chains()[chain]
        usual = self.scale.finals.final.epochs
        finals = sum(one.epochs or usual for one in trainings if one.kind != "level")
        curve = trainings[0].curve
        return finals + (0 if curve is None else self._epochs_of_search(curve, {one.level for one in trainings}))

    def _epochs_of_search(self, curve: Curve, levels: Set[int]) -> int:
        method, deepest = METHODS[curve.method], max(levels)
        searched = levels if method.searches_one_density else {deepest}
        return sum(method.search_epochs(self.search_config(curve, level), level) for level in searched)

    def shard(self, index: int, count: int) -> list[str]:
        """Return the chains of share `index` (1 … count); shares have about equal epochs.

        Raises ValueError for an index outside 1 … count.
        """
        if not 1 <= index <= count:
            raise ValueError(f"shard {index}/{count}: give i/n with 1 ≤ i ≤ n")
        return self.dealt(self.chains(), count)[index - 1]

    def by_cost(self, chains: Iterable[str]) -> dict[str, int]:
        """Return name → epochs of these chains, the most expensive first."""
        epochs = {chain: self.epochs(chain) for chain in chains}
        return dict(sorted(epochs.items(), key=lambda one: (-one[1], one[0])))

    def dealt(self, chains: Iterable[str], count: int) -> list[list[str]]:
        """Return `count` shares of these chains with about equal epochs: each chain goes to the lightest share."""
        loads = [0] * count
        shares: list[list[str]] = [[] for _ in range(count)]
        for chain, epochs in self.by_cost(chains).items():
            lightest = loads.index(min(loads))
            loads[lightest] += epochs
            shares[lightest].append(chain)
        return shares

    def names(self, chains: Collection[str] | None = None) -> Iterator[str]:
        """Yield the names of its runs, parents first; `chains` restricts them to these chains."""
        wanted = {name: found for name, found in self.chains().items() if chains is None or name in chains}
        for chain, trainings in wanted.items():
            if trainings[0].curve is not None:
                yield f"{chain}-search"
            yield from map(str, trainings)
        yield from (str(pair) for pair in self.pairs() if pair.first.chain in wanted)
