"""Results of a plan: errors and barriers by curve, level and trial, with statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from harness.analysis.barrier import BarrierCurve
from harness.analysis.norm import NormParameters
from harness.analysis.plots import LinePanel, LineSeries, Series
from harness.analysis.statistics import Claim, Contrast, Verdict, judge
from harness.analysis.summary import Summary, epsilon_from_dense
from harness.lineage.nodes.graph import RunSummary
from harness.lineage.nodes.record import BEFORE_TRAINING
from harness.models import width_of
from harness.pruning import METHODS
from harness.reproduction.figure import Curve, FigureClaim
from harness.reproduction.figure_plan import FigurePlan, Pair, Training
from harness.reproduction.paper import Printed, printed
from harness.reproduction.study_results import is_gain

QUESTIONS = {
    "stability": "SGD-noise stability",
    "lmc": "connectivity with retrain",
    "norm_init": "ticket and its copy with ψ_init",
    "signed_init": "ticket and abs(θ_init) ⊙ s",
}
"""Question about two networks → its words on a page."""
_ENDS = {
    "stability": ("second run, noise u'", "first run, noise u"),
    "lmc": ("retrain", "kind in the legend"),
    "norm_init": ("copy with ψ_init", "ticket"),
    "signed_init": ("abs(θ_init) ⊙ s", "ticket"),
}
"""Names of the networks at α = 0 and at α = 1."""


@dataclass(frozen=True)
class Point:
    """One curve (None: dense) at one density and one length of the final trainings."""

    name: str
    """The curve in words, with the number of epochs unless it is the usual one."""
    curve: Curve | None
    level: int
    length: int | None
    """Epochs of the final training; None for the usual number."""
    density: float
    accuracy_percent: Summary
    flipped_percent: Summary | None
    """Share of the kept weights whose sign training turned."""
    weights: Summary | None
    """Kept weights, classifier included; None if no method of the figure prunes the classifier."""
    epochs: float
    """Total for one network, search included."""
    paper: Printed | None

    @property
    def difference(self) -> float | None:
        """Ours − the paper's mean accuracy, percentage points."""
        return None if self.paper is None else self.accuracy_percent.mean - self.paper.mean


@dataclass(frozen=True)
class Judged:
    """A claim of the figure and its verdict."""

    statement: FigureClaim
    sides: tuple[str, str]
    """Names of a and b."""
    by_density: Mapping[float, float]
    """Density → accuracy a − b, percentage points, mean over the trials that have both."""
    verdict: Verdict
    """On the mean over these densities, one number for each trial."""


@dataclass(frozen=True)
class Provenance:
    """Time, hardware, precision, code and commands of the runs."""

    minutes: float
    """Wall-clock minutes of all runs together, searches included."""
    hardware: tuple[str, ...]
    precision: tuple[str, ...]
    """Precisions of the trainings, in words."""
    code: tuple[str, ...]
    """Commits, the newest last; + for uncommitted changes."""
    commands: tuple[str, ...]


@dataclass(frozen=True)
class Results:
    """The finished runs of a plan."""

    plan: FigurePlan
    trained: Mapping[Training, RunSummary]
    compared: Mapping[Pair, tuple[RunSummary, BarrierCurve]]
    densities: Mapping[tuple[str, int], list[float]]
    """(finder, level) → density of each ticket that has final trainings."""
    kept_signs: Mapping[tuple[str, int], list[float]]
    """(finder, level) → share of kept weights with the sign of the previous level (0..1), for each search."""
    norm: Mapping[str, list[NormParameters]]
    """Method → ψ of each ticket that was compared with its copy with ψ_init."""
    provenance: Provenance
    searches: tuple[str, ...]
    """Keys of the searches of all tickets."""
    correct: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    """Key of a run → whether each of N test images is correct, for runs that store it."""

    def density(self, level: int, curve: Curve | None = None) -> float:
        """Return the recorded density of a curve's tickets or of a level; before any run, the target density.

        It is the mean over trials. Gem-Miner's tickets of one level can differ in density, so they do not define the
        density of a level.
        """
        every = [one for one in self.plan.figure.curves if not METHODS[one.method].searches_one_density]
        places = [(one.finder, level) for one in (every if curve is None else [curve])]
        recorded = (found for place in places if (found := self.densities.get(place)))
        found = next(recorded, [self.plan.scale.density(level)])
        return found[0] if len({*found}) == 1 else fmean(found)  # fmean of equal numbers can differ in the last bit

    @property
    def missing(self) -> list[str]:
        """Names of the runs that are not finished."""
        trainings = [str(one) for one in self.plan.trainings() if one not in self.trained]
        return trainings + [str(pair) for pair in self.plan.pairs() if pair not in self.compared]

    @property
    def nodes(self) -> list[RunSummary]:
        """Every run of the results, once."""
        nodes = [*self.trained.values(), *(node for node, _ in self.compared.values())]
        return list({node.key: node for node in nodes}.values())

    def _finished(self, trainings: list[Training]) -> dict[int, RunSummary]:
        """Return trial → run of the finished trainings.

        One run counts as one trial. A level that several trials share belongs to the first of them.
        """
        found = {self.trained[one].key: one for one in reversed(trainings) if one in self.trained}
        return {one.trial: self.trained[one] for one in reversed(found.values())}

    def metric(self, trainings: list[Training], name: str) -> dict[int, float]:
        """Return {trial: metric}. Unfinished trainings and those without the metric are left out."""
        metrics = {trial: node.metrics for trial, node in self._finished(trainings).items()}
        return {trial: values[name] for trial, values in metrics.items() if name in values}

    def _trainings(self, curve: Curve | None, level: int, epochs: int | None = None) -> list[Training]:
        """Return the trainings of a curve (None: dense), one a trial. Default length: `final.epochs` of the plan."""
        return self.plan.dense(epochs) if curve is None else self.plan.of_curve(curve, level, epochs=epochs)

    def errors(self, curve: Curve | None, level: int, epochs: int | None = None) -> dict[int, float]:
        """Return trial → test error of a curve (None: dense), percent."""
        return self.metric(self._trainings(curve, level, epochs), "test_error_percent")

    def density_without_classifier(self, curve: Curve, level: int) -> float | None:
        """Return the mean over trials for a method whose density counts the classifier, such as Gem-Miner."""
        found = self.metric(self.plan.of_curve(curve, level), "density_without_classifier")
        return Summary.of(found.values()).mean if found else None

    def printed(self, curve: Curve | None, level: int) -> Printed | None:
        """Return the paper's number of a curve (None: dense) at a level; None for a network of another width."""
        scale, model = self.plan.scale, self.plan.scale.config.model
        if width_of(model.name, model.width) != width_of(model.name, None):
            return None
        density = 1.0 if curve is None else scale.density(level)
        return printed(self.plan.figure.name, scale.finals.data.name, model.name, curve, density)

    @property
    def has_printed(self) -> bool:
        """Whether the paper prints a number for any point of the plan."""
        wanted = [(curve, level) for curve in self.plan.figure.curves for level in self.plan.scale.levels]
        return any(self.printed(*one) for one in [(None, 0), *wanted])

    @cached_property
    def points(self) -> list[Point]:
        """Dense, then each curve by length and level, without points that have no finished trial."""
        plan = self.plan
        wanted: list[tuple[Curve | None, int, int | None]] = [(None, 0, epochs) for epochs in plan.dense_lengths]
        for curve in plan.figure.curves:
            lengths = (None,) if curve.kind == "level" else plan.scale.lengths
            wanted += [(curve, level, epochs) for epochs in lengths for level in plan.scale.levels]
        return [self._point(*place) for place in wanted if self.errors(*place)]

    def _point(self, curve: Curve | None, level: int, length: int | None) -> Point:
        trainings = self._trainings(curve, level, length)
        flipped = self.metric(trainings, "flipped_signs")
        epochs = self.metric(trainings, "epochs_total")
        return Point(
            name=trainings[0].in_words,
            curve=curve,
            level=level,
            length=length,
            density=1.0 if curve is None else self.density(level, curve),
            accuracy_percent=Summary.of(100 - error for error in self.errors(curve, level, length).values()),
            flipped_percent=Summary.of(100 * share for share in flipped.values()) if flipped else None,
            weights=self._weights(curve, trainings),
            epochs=max(epochs.values(), default=float("nan")),
            paper=self.printed(curve, level) if length is None else None,
        )

    def _weights(self, curve: Curve | None, trainings: list[Training]) -> Summary | None:
        remaining = self.metric(trainings, "num_remaining")
        if not self.prunes_classifier or not remaining:
            return None
        is_pruned = curve is not None and METHODS[curve.method].masks_classifier
        classifier = 0 if is_pruned else self.plan.num_weights[1]
        return Summary.of(count + classifier for count in remaining.values())

    @property
    def prunes_classifier(self) -> bool:
        """Whether a method of the figure prunes the classifier, so that densities count different weights."""
        return any(METHODS[method].masks_classifier for method in self.plan.figure.methods)

    @property
    def dense_gain(self) -> float | None:
        """Accuracy that the dense network gains at the cost of its ticket, percentage points; None if unknown."""
        epochs = self.plan.dense_at_ticket_cost
        usual, longer = (list(self.errors(None, 0, length).values()) for length in (None, epochs))
        return Summary.of(usual).mean - Summary.of(longer).mean if epochs and usual and longer else None

    @property
    def is_untrained(self) -> bool | None:
        """Whether the dense network gains more than `GAIN_POINTS` in a longer training; None if there is none."""
        return None if self.dense_gain is None else is_gain(self.dense_gain)

    @property
    def unclaimed(self) -> list[FigureClaim]:
        """Claims that are not tested: those against a dense network that is not trained to the end."""
        if not self.is_untrained:
            return []
        claims = self.plan.figure.claims
        return [one for one in claims if None in (one.first, one.second) and not one.dense_at_ticket_cost]

    @cached_property
    def claims(self) -> list[Judged]:
        """The verdicts on all tested claims that have a trial with both curves."""
        tested = [one for one in self.plan.figure.claims if one not in self.unclaimed]
        measured = [(one, *found) for one in tested if (found := self._measure(one)) is not None]
        verdicts = judge([Claim(contrast, one.expects, one.margin) for one, contrast, _ in measured])
        return [
            Judged(one, self._sides(one), by_density, verdict)
            for (one, _, by_density), verdict in zip(measured, verdicts, strict=True)
        ]

    def _of_claim(self, statement: FigureClaim, level: int) -> list[list[Training]]:
        """Return the trainings of a and of b."""
        longer = self.plan.dense_at_ticket_cost if statement.dense_at_ticket_cost else None
        sides = (statement.first, statement.second)
        return [self._trainings(curve, level, longer if curve is None else None) for curve in sides]

    def _sides(self, statement: FigureClaim) -> tuple[str, str]:
        first, second = self._of_claim(statement, self.plan.scale.levels[0])
        return first[0].in_words, second[0].in_words

    def _measure(self, statement: FigureClaim) -> tuple[Contrast, dict[float, float]] | None:
        """Return the contrast of a claim and its differences by density; None if no trial has both curves.

        Densities of one search are not independent. A trial therefore counts once, by its mean over all densities at
        which any trial has both curves. Trials that lack one of these densities are left out.
        """
        # Phase: pairs of runs, level → trial → (run of a, run of b).
        pairs: dict[int, dict[int, tuple[RunSummary, RunSummary]]] = {}
        for level in self.plan.scale.levels:
            first, second = map(self._finished, self._of_claim(statement, level))
            if both := {trial: (first[trial], second[trial]) for trial in first if trial in second}:
                pairs[level] = both
        trials = sorted(set.intersection(*map(set, pairs.values()))) if pairs else []
        if not trials:
            return None

        # Phase: differences by trial and by density.
        by_level = {level: {trial: _difference(*runs) for trial, runs in both.items()} for level, both in pairs.items()}
        differences = [[found[trial] for trial in trials] for found in by_level.values()]  # [levels, T]
        by_density = {self.density(level): Summary.of(found.values()).mean for level, found in by_level.items()}
        return Contrast(np.mean(differences, axis=0), self._images(pairs, trials)), by_density

    def _images(
        self, pairs: Mapping[int, Mapping[int, tuple[RunSummary, RunSummary]]], trials: list[int]
    ) -> NDArray[np.float64] | None:
        """Return (a correct) − (b correct), mean over levels [T, N]; None unless all runs store it."""
        chosen = [[both[trial] for trial in trials] for both in pairs.values()]
        if not all(node.key in self.correct for level in chosen for runs in level for node in runs):
            return None
        right = self.correct
        levels = [[right[a.key].astype(np.float64) - right[b.key] for a, b in level] for level in chosen]
        return np.mean(levels, axis=0, dtype=np.float64)

    @property
    def epsilon(self) -> float | None:
        """ε, the sd of the dense error over trials, percentage points.

        None for fewer than two trials, or if the dense network is not trained to the end.
        """
        dense = list(self.errors(None, 0).values())
        return epsilon_from_dense(dense) if len(dense) > 1 and not self.is_untrained else None

    @cached_property
    def barriers(self) -> dict[str, dict[str, list[BarrierCurve]]]:
        """Question → compared trainings, in words → barrier curve of each finished trial."""
        groups: dict[str, dict[str, list[BarrierCurve]]] = {}
        for pair, (_, curve) in self.compared.items():
            groups.setdefault(pair.question, {}).setdefault(pair.first.in_words, []).append(curve)
        return groups

    @property
    def barrier_density(self) -> float | None:
        """Density of the compared tickets; None before any comparison is finished."""
        level = self.plan.scale.barrier_level
        return self.density(level) if self.compared and level is not None else None

    @property
    def panels(self) -> list[LinePanel]:
        """The comparisons at the usual length, one panel of the plot for each question.

        The panel of connectivity also shows the stability of `retrain`, the paper's reference (section 4.2).
        """
        groups: dict[str, dict[Curve, list[BarrierCurve]]] = {}
        for pair, (_, curve) in self.compared.items():
            if pair.first.curve is not None and pair.first.epochs is None:
                groups.setdefault(pair.question, {}).setdefault(pair.first.curve, []).append(curve)
        if "lmc" in groups:
            stable = groups.get("stability", {})
            groups["lmc"] = {one: found for one, found in stable.items() if one.kind == "retrain"} | groups["lmc"]
        return [
            LinePanel(
                QUESTIONS[question],
                _ENDS[question],
                [LineSeries(curve.use, curve.finder, found) for curve, found in curves.items()],
                as_barrier=question not in BEFORE_TRAINING,
            )
            for question, curves in groups.items()
        ]

    @property
    def series(self) -> list[Series]:
        """The curves of the accuracy plot."""
        return [
            Series(
                curve.use,
                curve.finder,
                {self._place(curve, level): list(errors.values()) for level, errors in found},
                {self._place(curve, level): one.mean for level, _ in found if (one := self.printed(curve, level))},
            )
            for curve in self.plan.figure.curves
            if (found := [(n, errors) for n in self.plan.scale.levels if (errors := self.errors(curve, n))])
        ]

    def _place(self, curve: Curve, level: int) -> float:
        """Return the horizontal position of a point: its density, or its weights where these are equal."""
        return self.plan.weights(level) if self.plan.figure.equal_weights else self.density(level, curve)


def _difference(first: RunSummary, second: RunSummary) -> float:
    """Return the test accuracy of the first minus that of the second, percentage points."""
    return second.metrics["test_error_percent"] - first.metrics["test_error_percent"]
