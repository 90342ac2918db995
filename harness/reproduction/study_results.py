"""The recorded runs of a study, sorted by what they measure, and the verdicts on its hypotheses."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from harness.analysis.statistics import Claim, Contrast, Verdict, judge
from harness.reproduction.figure import Curve
from harness.reproduction.figure_plan import Pair, Training
from harness.reproduction.study import Hypothesis, Study
from harness.reproduction.study_records import ChainRecords, RunLine, finished_chains, wanted_names

GAIN_POINTS = 1.0
"""The dense network is untrained at a length if the next longer one gains more than so many points."""
_TIE = 1e-9
"""A mean of accuracies is off by float noise, which makes no gain larger than the bound."""
FIXED_EPSILON = 1.0
"""Points within which two networks count as connected, whatever the spread over seeds is."""
_QUESTIONS = {"stability": "stability", "connectivity": "lmc", "norm_init": "norm_init"}


@dataclass(frozen=True)
class JudgedHypothesis:
    """A hypothesis at one length, and what the trials say of it."""

    hypothesis: Hypothesis
    epochs: int
    contrast: Contrast
    verdict: Verdict | None
    """None: not all trials are finished, or the dense network it is compared with is untrained."""
    why_not: str = ""
    """Why there is none."""


@dataclass(frozen=True)
class StudyResults:
    """A study with the runs that are recorded.

    Raises ValueError for runs that are of other data than the rest, or of one name and two keys.
    """

    study: Study
    chains: Mapping[str, ChainRecords]
    """Its own chains that are whole."""
    commit: str
    """The commit of its plan; "" if it is not committed."""
    committed_ms: int
    beside: tuple[StudyResults, ...] = ()
    """The studies whose runs it uses, too."""

    def __post_init__(self) -> None:
        keys: dict[str, str] = {}
        data: dict[tuple[str | None, int], str] = {}
        for run in (run for chain in self.all_chains for run in chain.runs):
            if keys.setdefault(run.name, run.key) != run.key:
                raise ValueError(f"{run.name} is recorded as two different runs, of {self.study.name} and beside it")
            if run.num_images and run.curve is None:
                data.setdefault((run.tags.get("data_digest"), run.num_images), run.name)
        if len(data) > 1:
            raise ValueError(f"{' and '.join(data.values())} are not of the same data, so nothing is compared")

    @classmethod
    def read(cls, study: Study, results: Path, beside: Mapping[str, Study]) -> StudyResults:
        """Read all records of a study and of those beside it.

        Raises:
            ValueError: A study beside it has another regime, or a file holds no records.
        """
        others = []
        for name in study.beside:
            other = beside[name]
            scales = (study.plan.scale, other.plan.scale)
            if any(getattr(scales[0], field) != getattr(scales[1], field) for field in ("config", "levels", "lengths")):
                raise ValueError(f"{study.path}: the study {name} beside it has another regime")
            others.append(cls(other, finished_chains(other, results), *plan_commit(other.path)))
        return cls(study, finished_chains(study, results), *plan_commit(study.path), tuple(others))

    @property
    def all_chains(self) -> list[ChainRecords]:
        """Its own chains, then those of the studies beside it."""
        return [*self.chains.values(), *(chain for other in self.beside for chain in other.chains.values())]

    @cached_property
    def runs(self) -> dict[str, RunLine]:
        """Every recorded run by its name in the plan."""
        return {run.name: run for chain in reversed(self.all_chains) for run in chain.runs}

    @property
    def finished(self) -> dict[str, ChainRecords]:
        """The chains of its plan that need not be made: all their runs are recorded, here or beside it."""
        every = {chain.chain: chain for chain in reversed(self.all_chains)}
        plan = self.study.plan
        return {name: every[name] for name in plan.chains() if {*wanted_names(plan, name)} <= self.runs.keys()}

    @cached_property
    def trials(self) -> list[int]:
        """The trials whose runs are all there, those of the studies beside it too."""
        return [trial for trial in self.study.plan.trials if not self._missing(trial)]

    def _missing(self, trial: int) -> list[str]:
        plan = self.study.plan
        own = [name for name, found in plan.chains().items() if found[0].trial == trial]
        wanted = [name for chain in own for name in wanted_names(plan, chain)]
        for hypothesis in self.study.hypotheses:  # of the studies beside it, what is compared
            for epochs in hypothesis.epochs:
                wanted += [self._name(hypothesis, side, epochs, trial) for side in ("first", "second")]
        return [name for name in wanted if name not in self.runs]

    @property
    def is_complete(self) -> bool:
        """Whether every trial of the plan is finished."""
        return len(self.trials) == len(self.study.plan.trials)

    # ------------------------------------------------------------------ runs by what they measure

    def length(self, epochs: int) -> int | None:
        """Return a number of final epochs as trainings name it: None for the usual one."""
        return None if epochs == self.study.plan.scale.finals.final.epochs else epochs

    def training(self, curve: Curve | None, epochs: int, trial: int) -> Training:
        """Return the training of a curve (None: dense) at so many final epochs in a trial."""
        plan, length = self.study.plan, self.length(epochs)
        level = plan.scale.levels[0]
        of_all = plan.dense(length) if curve is None else plan.of_curve(curve, level, epochs=length)
        return next(one for one in of_all if one.trial == trial)

    def _name(self, hypothesis: Hypothesis, side: str, epochs: int, trial: int) -> str:
        curve: Curve | None = getattr(hypothesis, side)
        if hypothesis.of == "accuracy":
            length = (hypothesis.dense_epochs or epochs) if curve is None else epochs
            return str(self.training(curve, length, trial))
        return self.pair_name(hypothesis.of, curve, epochs, trial)

    def pair_name(self, measure: str, curve: Curve | None, epochs: int, trial: int) -> str:
        """Return the name of a comparison in the plan."""
        one = self.training(curve, epochs, trial)
        return str(Pair(_QUESTIONS[measure], one, one))  # type: ignore[arg-type]  # its name has the first alone

    def accuracies(self, curve: Curve | None, epochs: int) -> list[float]:
        """Return the test accuracy, percent, of each finished trial."""
        names = [str(self.training(curve, epochs, trial)) for trial in self.trials]
        return [100 - self.runs[name].metrics["test_error_percent"] for name in names if name in self.runs]

    def barriers(self, measure: str, curve: Curve, epochs: int) -> list[RunLine]:
        """Return the comparison of each finished trial."""
        names = [self.pair_name(measure, curve, epochs, trial) for trial in self.trials]
        return [self.runs[name] for name in names if name in self.runs]

    def epsilon(self, curve: Curve | None, epochs: int) -> float | None:
        """Return the sample sd of a kind's test error over trials, points; None for fewer than two."""
        found = self.accuracies(curve, epochs)
        return statistics.stdev(found) if len(found) > 1 else None

    # ------------------------------------------------------------------ trained to the end

    @cached_property
    def dense_epochs(self) -> list[int]:
        """Lengths of the dense trainings, the shortest first."""
        usual = self.study.plan.scale.finals.final.epochs
        return sorted(length or usual for length in self.study.plan.dense_lengths)

    def dense_gain(self, epochs: int) -> float | None:
        """Return the points that the dense network gains from this length to the next one; None after the longest."""
        later = [length for length in self.dense_epochs if length > epochs]
        if not later or not self.trials:
            return None
        return statistics.fmean(self.accuracies(None, later[0])) - statistics.fmean(self.accuracies(None, epochs))

    def is_untrained(self, epochs: int) -> bool:
        """Whether the dense network is untrained at this length."""
        gain = self.dense_gain(epochs)
        return gain is not None and gain > GAIN_POINTS + _TIE

    def is_of_speed(self, hypothesis: Hypothesis, epochs: int) -> bool:
        """Whether a difference at this length is one of speed.

        So it is where the dense network is untrained, and where one of the two sides itself goes on to gain as much.
        """
        later = [length for length in self.study.final_epochs if length > epochs]
        gains = [
            statistics.fmean(after) - statistics.fmean(before)
            for curve in (hypothesis.first, hypothesis.second)
            if curve is not None and later
            if (before := self.accuracies(curve, epochs)) and (after := self.accuracies(curve, later[0]))
        ]
        return self.is_untrained(epochs) or max(gains, default=0.0) > GAIN_POINTS + _TIE

    # ------------------------------------------------------------------ hypotheses

    def contrast(self, hypothesis: Hypothesis, epochs: int) -> Contrast:
        """Return first − second of every finished trial: accuracy, or points of error along a line."""
        names = [[self._name(hypothesis, side, epochs, trial) for side in ("first", "second")] for trial in self.trials]
        pairs = [(self.runs[first], self.runs[second]) for first, second in names]
        if hypothesis.of != "accuracy":
            return Contrast.of([barrier_points(a, hypothesis.of) - barrier_points(b, hypothesis.of) for a, b in pairs])
        right = [(a.right(), b.right()) for a, b in pairs]
        if all(a is not None and b is not None for a, b in right):
            return Contrast.of_images(
                np.array([a.astype(float) - b for a, b in right if a is not None and b is not None])
            )
        return Contrast.of([b.metrics["test_error_percent"] - a.metrics["test_error_percent"] for a, b in pairs])

    @cached_property
    def judged(self) -> list[JudgedHypothesis]:
        """Every hypothesis at every length that it names; one family of tests."""
        if not self.trials:
            return []
        places = [(one, epochs) for one in self.study.hypotheses for epochs in one.epochs]
        contrasts = [self.contrast(one, epochs) for one, epochs in places]
        if not self.is_complete:
            why = "not all trials are finished"
            return [
                JudgedHypothesis(*place, contrast, None, why) for place, contrast in zip(places, contrasts, strict=True)
            ]
        margin = self.study.margin_points
        claims = [
            Claim(contrast, one.expects, margin if one.expects in ("equal", "not_worse") else None)
            for (one, _), contrast in zip(places, contrasts, strict=True)
        ]
        found = []
        for (one, epochs), contrast, verdict in zip(places, contrasts, judge(claims), strict=True):
            with_dense = one.of == "accuracy" and None in (one.first, one.second)
            if with_dense and self.is_untrained(self.study.final_epochs[-1]):
                found.append(JudgedHypothesis(one, epochs, contrast, None, "the dense network is untrained"))
            else:
                found.append(JudgedHypothesis(one, epochs, contrast, verdict))
        return found

    # ------------------------------------------------------------------ departures

    @cached_property
    def departures(self) -> list[str]:
        """Everything in which the runs are not what the plan says, in sentences; those of studies beside it, too."""
        found = []
        own = self.chains
        if not self.commit:
            found.append(
                "It is not known when the plan was committed: it has changed since, or this is no whole git clone "
                "(`git fetch --unshallow` makes it one)."
            )
        changed = sorted(name for name, chain in own.items() if chain.plan_sha256 != self.study.sha256)
        if changed:
            found.append(f"Made under another version of the plan: {', '.join(changed)}.")
        early = sorted(
            name
            for name, chain in own.items()
            if self.commit and min(run.started_ms for run in chain.runs) < self.committed_ms
        )
        if early:
            found.append(f"Begun before this version of the plan was committed: {', '.join(early)}.")
        unclean = sorted({run.name for chain in own.values() for run in chain.runs if run.commit.endswith("+")})
        if unclean:
            found.append(f"Made by code with uncommitted changes: {', '.join(unclean[:5])}, {len(unclean)} in all.")
        if unlike := self._other_settings():
            told = f"{', '.join(unlike[:5])}, {len(unlike)} in all"
            found.append(f"Made with other settings than the first of their length: {told}.")
        runs = [run for chain in own.values() for run in chain.runs if run.curve is None]
        if partial := sorted(run.name for run in runs if not run.correct):
            found.append(
                f"Without a record of single test images: {', '.join(partial[:5])}, {len(partial)} in all. Contrasts "
                "with them are compared by trials alone."
            )
        return found + [f"{other.study.name}: {sentence}" for other in self.beside for sentence in other.departures]

    def _other_settings(self) -> list[str]:
        """Return the trainings whose settings are not those of the first one of their length, α and initialisation.

        The tag holds all settings but seeds, method and kind: precision, batch, number of processes.
        """
        first: dict[tuple[str, str, int | None], str | None] = {}
        unlike = []
        for one in self.study.plan.trainings():
            if (run := self.runs.get(str(one))) is not None:
                settings = run.tags.get("settings")
                alpha = "uniform" if one.curve is None else one.curve.alpha
                if first.setdefault((alpha, one.initialisation, one.epochs), settings) != settings:
                    unlike.append(run.name)
        return unlike


def barrier_points(run: RunLine, measure: str) -> float:
    """Return what a comparison is judged by, percentage points.

    Of a ticket and its copy with ψ_init it is the error that the copy has more (below 0: it has less); else the largest
    excess over the straight line between the two ends.
    """
    assert run.curve is not None
    return run.curve.error_difference if measure == "norm_init" else run.curve.barrier_above_line


def plan_commit(path: Path) -> tuple[str, int]:
    """Return the commit that last changed a plan, and when, in ms.

    ("", 0) if it has changed since, if there is none, or in a shallow clone, whose oldest commit seems to change all.
    """

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(path.parent), *words], capture_output=True, text=True, timeout=30)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        if git("status", "--porcelain", "--", path.name) or git("rev-parse", "--is-shallow-repository") == "true":
            return "", 0
        commit, _, seconds = git("log", "-1", "--format=%H %ct", "--", path.name).partition(" ")
    except (OSError, subprocess.TimeoutExpired):
        return "", 0
    return (commit, 1000 * int(seconds)) if commit else ("", 0)
