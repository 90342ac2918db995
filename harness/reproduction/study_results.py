"""Recorded runs of a study by measure, and the verdicts on its hypotheses."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from harness.analysis.statistics import Claim, Contrast, Floats, Verdict, judge
from harness.reproduction.figure import Curve
from harness.reproduction.study import SIDES, Hypothesis, Measure, Study
from harness.reproduction.study_records import ChainRecords, RunLine, directory_of, finished_chains, wanted_names
from harness.reproduction.study_settings import PlannedSettings

GAIN_POINTS = 1.0
"""The dense network is untrained at a length if a longer one gains more than this, percentage points."""
_TIE = 1e-9
"""Tolerance for float noise in mean accuracies, points."""
FIXED_EPSILON = 1.0
"""A bound on connected networks that is independent of the spread over seeds, points."""


def is_gain(points: float | None) -> bool:
    """Return whether a longer training gains enough to call the shorter one untrained; False if there is none."""
    return points is not None and points > GAIN_POINTS + _TIE


@dataclass(frozen=True)
class JudgedHypothesis:
    """A hypothesis at one length, with its verdict."""

    hypothesis: Hypothesis
    epochs: int
    contrast: Contrast
    verdict: Verdict | None
    """None if trials are missing, or if its dense network is untrained."""
    why_not: str = ""
    """Reason for a missing verdict."""


@dataclass(frozen=True)
class StudyResults:
    """A study with its recorded runs.

    Raises ValueError for runs on different data, or for one name with two keys.
    """

    study: Study
    chains: Mapping[str, ChainRecords]
    """Its own complete chains."""
    commit: str
    """Commit of the plan; empty if it is not committed."""
    committed_ms: int
    beside: tuple[StudyResults, ...] = ()
    """Further studies whose runs it also uses."""
    unplanned: tuple[str, ...] = ()
    """Records in its directory that are no chain of the plan."""
    amended: tuple[str, ...] = ()
    """Records that were changed after the commit that added them, in words."""

    def __post_init__(self) -> None:
        keys: dict[str, str] = {}
        data: dict[str | None, str] = {}
        images: dict[int, str] = {}
        for run in (run for chain in self.all_chains for run in chain.runs):
            if keys.setdefault(run.name, run.key) != run.key:
                raise ValueError(f"{run.name} is recorded as two different runs, in {self.study.name} and beside it")
            if run.curve is None:
                data.setdefault(run.tags.get("data_digest"), run.name)
                if run.num_images:
                    images.setdefault(run.num_images, run.name)
        for found in (data, images):
            if len(found) > 1:
                raise ValueError(f"{' and '.join(found.values())} have different data, so they cannot be compared")

    @classmethod
    def read(cls, study: Study, results: Path, beside: Mapping[str, Study]) -> StudyResults:
        """Read all records of a study and of the studies beside it.

        Raises ValueError if the plan and those beside it do not fit, or if a file is invalid.
        """
        own = {name: beside[name] for name in study.beside}
        study.check_beside(own)
        return replace(cls._alone(study, results), beside=tuple(cls._alone(other, results) for other in own.values()))

    @classmethod
    def _alone(cls, study: Study, results: Path) -> StudyResults:
        directory = directory_of(study.name, results)
        unplanned = {path.stem for path in directory.glob("*.json")} - study.plan.chains().keys()
        return cls(
            study,
            finished_chains(study, results),
            *plan_commit(study.path),
            unplanned=tuple(sorted(unplanned)),
            amended=amended_records(directory),
        )

    @property
    def all_chains(self) -> list[ChainRecords]:
        """Its own chains, then those of the studies beside it."""
        return [*self.chains.values(), *(chain for other in self.beside for chain in other.chains.values())]

    @cached_property
    def runs(self) -> dict[str, RunLine]:
        """Recorded runs by name in the plan, those of studies beside this one included."""
        return {run.name: run for chain in reversed(self.all_chains) for run in chain.runs}

    @property
    def finished(self) -> dict[str, ChainRecords]:
        """Chains of the plan with all runs recorded, by this study or one beside it."""
        every = {chain.chain: chain for chain in reversed(self.all_chains)}
        plan = self.study.plan
        return {name: every[name] for name in plan.chains() if {*wanted_names(plan, name)} <= self.runs.keys()}

    @cached_property
    def trials(self) -> list[int]:
        """Trials with all runs recorded, including runs of studies beside it."""
        return [trial for trial in self.study.plan.trials if not self._missing(trial)]

    def _missing(self, trial: int) -> list[str]:
        plan = self.study.plan
        own = [name for name, found in plan.chains().items() if found[0].trial == trial]
        wanted = [name for chain in own for name in wanted_names(plan, chain)]
        for hypothesis in self.study.hypotheses:  # they can name runs of studies beside it
            for epochs in hypothesis.epochs:
                wanted += [self.study.name_of_side(hypothesis, side, epochs, trial) for side in SIDES]
        return [name for name in wanted if name not in self.runs]

    @property
    def is_complete(self) -> bool:
        """Whether every trial of the plan is finished."""
        return len(self.trials) == len(self.study.plan.trials)

    # ------------------------------------------------------------------ runs by measure

    def accuracies(self, curve: Curve | None, epochs: int) -> list[float]:
        """Return the test accuracy, percent, of each finished trial."""
        names = [str(self.study.training(curve, epochs, trial)) for trial in self.trials]
        return [100 - self.runs[name].metrics["test_error_percent"] for name in names if name in self.runs]

    def barriers(self, measure: str, curve: Curve, epochs: int) -> list[RunLine]:
        """Return the comparison of each finished trial."""
        names = [self.study.pair_name(measure, curve, epochs, trial) for trial in self.trials]
        return [self.runs[name] for name in names if name in self.runs]

    def epsilon(self, curve: Curve | None, epochs: int) -> float | None:
        """Return the sample sd of a kind's test error over trials, points; None for fewer than two trials."""
        found = self.accuracies(curve, epochs)
        return statistics.stdev(found) if len(found) > 1 else None

    # ------------------------------------------------------------------ trained to the end

    @cached_property
    def dense_epochs(self) -> list[int]:
        """Lengths of the dense trainings, rising."""
        usual = self.study.plan.scale.finals.final.epochs
        return sorted(length or usual for length in self.study.plan.dense_lengths)

    def dense_gain(self, epochs: int) -> float | None:
        """Return the largest gain of the dense network at a longer length, points; None for the longest."""
        return self._gain(None, epochs, self.dense_epochs)

    def _gain(self, curve: Curve | None, epochs: int, lengths: Sequence[int]) -> float | None:
        """Return the largest gain in mean accuracy at a longer length, points; None if there is none."""
        now = self.accuracies(curve, epochs)
        later = [found for length in lengths if length > epochs and (found := self.accuracies(curve, length))]
        return max(map(statistics.fmean, later)) - statistics.fmean(now) if now and later else None

    def is_untrained(self, epochs: int) -> bool:
        """Return whether the dense network is untrained here: a longer training gains more than `GAIN_POINTS`."""
        return is_gain(self.dense_gain(epochs))

    def is_of_speed(self, hypothesis: Hypothesis, epochs: int) -> bool:
        """Return whether a difference at this length is about speed only.

        It is if the dense network is untrained there, or if either side gains more than `GAIN_POINTS` at a longer
        length. A dense side of another length must be trained to the end itself.
        """
        if hypothesis.dense_epochs is not None and self.is_untrained(hypothesis.dense_epochs):
            return True
        curves = [curve for curve in (hypothesis.first, hypothesis.second) if curve is not None]
        gains = [self._gain(curve, epochs, self.study.final_epochs) for curve in curves]
        return self.is_untrained(epochs) or any(map(is_gain, gains))

    # ------------------------------------------------------------------ hypotheses

    def contrast(self, hypothesis: Hypothesis, epochs: int) -> Contrast:
        """Return first − second of every finished trial: accuracy, or barrier points."""
        name = self.study.name_of_side
        names = [[name(hypothesis, side, epochs, trial) for side in SIDES] for trial in self.trials]
        pairs = [(self.runs[first], self.runs[second]) for first, second in names]
        images = [(_by_image(a, hypothesis.of), _by_image(b, hypothesis.of)) for a, b in pairs]
        if all(a is not None and b is not None for a, b in images):
            return Contrast.of_images(np.array([a - b for a, b in images if a is not None and b is not None]))
        if hypothesis.of == "accuracy":
            return Contrast.of([b.metrics["test_error_percent"] - a.metrics["test_error_percent"] for a, b in pairs])
        return Contrast.of([barrier_points(a, hypothesis.of) - barrier_points(b, hypothesis.of) for a, b in pairs])

    @cached_property
    def across_machines(self) -> list[str]:
        """Hypotheses whose two sides were made on other machines, by the hardware that their runs record."""
        # Records of earlier versions name the hardware once for a chain.
        chains = reversed(self.all_chains)
        hardware = {run.name: run.hardware or chain.hardware for chain in chains for run in chain.runs}
        return [
            one.name
            for one in self.study.hypotheses
            if any(
                len({hardware[self.study.name_of_side(one, side, epochs, trial)] for side in SIDES}) > 1
                for epochs in one.epochs
                for trial in self.trials
            )
        ]

    @cached_property
    def judged(self) -> list[JudgedHypothesis]:
        """Every hypothesis at each of its lengths, as one family of tests."""
        # Phase: contrasts, without verdicts until all trials are finished.
        if not self.trials:
            return []
        places = [(one, epochs) for one in self.study.hypotheses for epochs in one.epochs]
        contrasts = [self.contrast(one, epochs) for one, epochs in places]
        if not self.is_complete:
            why = "not all trials are finished"
            return [
                JudgedHypothesis(*place, contrast, None, why) for place, contrast in zip(places, contrasts, strict=True)
            ]

        # Phase: verdicts, except against an untrained dense network. Such a row is no claim and counts as none.
        untrained = self.is_untrained(self.study.final_epochs[-1])
        claimed = [not (untrained and one.of == "accuracy" and None in (one.first, one.second)) for one, _ in places]
        margin = self.study.margin_points
        claims = [
            Claim(contrast, one.expects, margin if one.expects in ("equal", "not_worse") else None)
            for (one, _), contrast, is_claim in zip(places, contrasts, claimed, strict=True)
            if is_claim
        ]
        verdicts = iter(judge(claims))
        return [
            JudgedHypothesis(*place, contrast, next(verdicts))
            if is_claim
            else JudgedHypothesis(*place, contrast, None, "the dense network is untrained")
            for place, contrast, is_claim in zip(places, contrasts, claimed, strict=True)
        ]

    # ------------------------------------------------------------------ departures

    @cached_property
    def departures(self) -> list[str]:
        """Departures of the runs from the plan, in sentences, including those of studies beside it."""
        # Phase: the plan and its date.
        found = []
        own = self.chains
        if not self.commit:
            found.append(
                "The commit date of the plan is unknown. It has uncommitted changes, or the git clone is shallow (run "
                "`git fetch --unshallow`)."
            )
        changed = sorted(name for name, chain in own.items() if chain.plan_sha256 != self.study.sha256)
        if changed:
            found.append(f"Run under another version of the plan: {', '.join(changed)}.")
        if self.unplanned:
            found.append(f"Recorded, but not in the plan, and left out: {', '.join(self.unplanned)}.")
        early = sorted(
            name
            for name, chain in own.items()
            if self.commit and min(run.started_ms for run in chain.runs) < self.committed_ms
        )
        if early:
            found.append(f"Started before this version of the plan was committed: {', '.join(early)}.")

        # Phase: code, settings and missing images.
        runs = [run for chain in own.values() for run in chain.runs]
        if unclean := sorted({run.name for run in runs if run.commit.endswith("+")}):
            found.append(f"Run with uncommitted changes of the code: {_some(unclean)}.")
        if unknown := sorted({run.name for run in runs if not run.commit}):
            found.append(f"Run with unknown code, because it was not in a git clone: {_some(unknown)}.")
        found += self._other_settings()
        if self.amended:
            found.append(f"Records that were changed after they were made: {'; '.join(self.amended)}.")
        runs = [run for chain in own.values() for run in chain.runs if run.curve is None]
        if partial := sorted(run.name for run in runs if not run.correct):
            found.append(
                f"No results for single test images: {_some(partial)}. Their contrasts are compared by trials only."
            )
        return found + [f"{other.study.name}: {sentence}" for other in self.beside for sentence in other.departures]

    def _other_settings(self) -> list[str]:
        """Return sentences about own runs whose settings are not those of the plan, or differ among themselves.

        The tag `settings` covers everything except seeds, method and kind, such as precision, batch size and number of
        processes. The plan leaves the number of processes open.
        """
        # Phase: the tags of every run, with those that the plan allows.
        planned, found = PlannedSettings(self.study.plan), []
        groups: dict[frozenset[str], dict[str | None, list[str]]] = {}
        for name, chain in self.chains.items():
            by_name = {run.name: run for run in chain.runs}
            for run_name, training, is_level in planned.runs(name):
                if (run := by_name.get(run_name)) is not None:
                    allowed = planned.tags(training, run.tags.get("data_digest", ""), is_level=is_level)
                    groups.setdefault(allowed, {}).setdefault(run.tags.get("settings"), []).append(run_name)

        # Phase: compare.
        if planned.known:
            other = [
                name
                for allowed, tags in groups.items()
                for tag, names in tags.items()
                if tag not in allowed
                for name in names
            ]
            if other:
                found.append(f"Settings differ from those of the plan: {_some(sorted({*other}))}.")
        else:
            found.append(
                "The settings cannot be derived from the plan, because its network is not built in. Runs are only "
                "compared with each other."
            )
        for tags in groups.values():
            first, *others = tags.values()
            if unlike := sorted({name for names in others for name in names}):
                found.append(f"Settings differ from those of {first[0]}: {_some(unlike)}.")
        return found


def _some(names: Sequence[str]) -> str:
    """Return the first names and their number, in words."""
    return f"{', '.join(names[:5])}, {len(names)} in all"


def barrier_points(run: RunLine, measure: str) -> float:
    """Return the number that hypotheses compare, percentage points.

    For norm_init it is the error of the copy minus the error of the ticket. For other measures it is the barrier above
    the line.
    """
    assert run.curve is not None
    return run.curve.error_difference if measure == "norm_init" else run.curve.barrier_above_line


def _by_image(run: RunLine, measure: Measure) -> Floats | None:
    """Return what a hypothesis compares for each test image [N], in shares; None if it is not stored or not additive.

    For accuracy it is whether the image is correct. For norm_init it is that of the ticket minus that of its copy. A
    barrier is a maximum over points of the line, so it has no value for one image.
    """
    right = run.right()
    if right is None or measure in ("stability", "connectivity"):
        return None
    return right.astype(float) if measure == "accuracy" else right[-1].astype(float) - right[0]


def amended_records(directory: Path) -> tuple[str, ...]:
    """Return the records of a study that were changed after the commit that added them, grouped by the last commit.

    Changes that are not committed count, too. Outside a git clone, and in a shallow one, there is no history.
    """
    # Each commit is one line that begins with a NUL, followed by the files that it changed.
    told = _git(directory, "log", "--format=%x00%h “%s”", "--name-only", "--relative", "--", ".")
    commits: dict[str, list[str]] = {}
    for block in told.split("\0")[1:]:
        commit, *files = block.strip().split("\n")
        for file in filter(None, files):
            commits.setdefault(file, []).append(commit)
    last: dict[str, list[str]] = {}
    for file, found in sorted(commits.items()):
        if len(found) > 1 and (directory / file).exists():
            last.setdefault(found[0], []).append(Path(file).stem)
    found = [f"{_some(names)} (commit {commit})" for commit, names in last.items()]

    changed = _git(directory, "diff", "HEAD", "--name-only", "--diff-filter=M", "--relative", "--", ".")
    if names := sorted(Path(file).stem for file in changed.split("\n") if file):
        found.append(f"{_some(names)} (not committed)")
    return tuple(found)


def plan_commit(path: Path) -> tuple[str, int]:
    """Return the last commit of a plan and its time in ms.

    Returns ("", 0) if the plan has uncommitted changes or no commit. Shallow clones also give ("", 0), because their
    oldest commit seems to change every file.
    """

    if _git(path.parent, "status", "--porcelain", "--", path.name):
        return "", 0
    if _git(path.parent, "rev-parse", "--is-shallow-repository") == "true":
        return "", 0
    commit, _, seconds = _git(path.parent, "log", "-1", "--format=%H %ct", "--", path.name).partition(" ")
    return (commit, 1000 * int(seconds)) if commit else ("", 0)


def _git(directory: Path, *words: str) -> str:
    """Return the output of git in a directory; empty if it fails or is missing."""
    try:
        done = subprocess.run(["git", "-C", str(directory), *words], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
