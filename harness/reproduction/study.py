"""A study: a plan that is committed before its runs are made.

A plan is a TOML file in recipes/studies/. It names the question, the regime, the trials and their seeds. It also fixes
the margin of "about equal", every hypothesis with its direction, and the stopping rule.
"""

from __future__ import annotations

import hashlib
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin

from harness.analysis.statistics import MOST_TRIALS
from harness.common.escape import one_line
from harness.common.files import MOST_JSON_BYTES, read_bounded
from harness.config import known
from harness.data.spec import DATASETS
from harness.models.network import Definition
from harness.pruning import METHODS
from harness.pruning.method import Method
from harness.reproduction.figure import DENSE, Curve, Figure
from harness.reproduction.figure_plan import FigurePlan, Pair, Scale, Training

Measure = Literal["accuracy", "stability", "connectivity", "norm_init"]
"""accuracy: test accuracy, percent. stability, connectivity: the barrier above the line, points.
norm_init: the error of a ticket's copy with ψ_init minus the error of the ticket, points."""
Expectation = Literal["greater", "less", "differs", "equal", "not_worse"]
"""Of first − second. "equal" lies within ± margin, "not_worse" above −margin."""
Side = Literal["first", "second"]
SIDES: tuple[Side, Side] = ("first", "second")

_QUESTIONS = {"stability": "stability", "connectivity": "lmc", "norm_init": "norm_init"}
"""Measure of two networks → `Pair.question`."""
# Field → type, of the plan and its tables.
_TOP: dict[str, Any] = dict.fromkeys(("title", "question", "stopping"), str)
_TOP |= {"regime": dict, "curves": list[str], "hypotheses": list[dict], "margin_points": int | float}
_OPTIONAL: dict[str, Any] = dict.fromkeys(("stability", "connectivity", "initial_norm", "beside"), list[str])
_OPTIONAL |= {"notes": str}
_REGIME: dict[str, Any] = dict.fromkeys(("scale", "dataset", "network"), str)
_REGIME |= dict.fromkeys(("level", "first_trial", "trials"), int) | {"final_epochs": list[int]}
_HYPOTHESIS: dict[str, Any] = dict.fromkeys(("name", "says", "of", "first", "second", "expects"), str)
_FURTHER: dict[str, Any] = {"epochs": list[int], "dense_epochs": int}
_IN_WORDS: dict[Any, str] = {
    str: "a text",
    int: "a whole number",
    int | float: "a number",
    dict: "a table",
    list[str]: "a list of texts",
    list[int]: "a list of whole numbers",
    list[dict]: "a list of tables",
}


@dataclass(frozen=True)
class Hypothesis:
    """One claim of a study, tested separately at each of `epochs`."""

    name: str
    """Short name for pages: a, b, …"""
    says: str
    of: Measure
    first: Curve | None
    """None: the dense network."""
    second: Curve | None
    expects: Expectation
    epochs: tuple[int, ...]
    """Lengths of the final trainings at which it is tested."""
    dense_epochs: int | None = None
    """Epochs of a dense side; by default those of the other side."""


@dataclass(frozen=True)
class Study:
    """A committed plan."""

    name: str
    title: str
    question: str
    plan: FigurePlan
    hypotheses: tuple[Hypothesis, ...]
    margin_points: float
    """Margin of "about equal", percentage points of accuracy."""
    stopping: str
    beside: tuple[str, ...]
    """Further studies with the same trials and regime, whose runs are also used."""
    path: Path
    sha256: str
    """SHA-256 of the file."""
    notes: str = ""

    @property
    def final_epochs(self) -> tuple[int, ...]:
        """Lengths of the final trainings, rising."""
        usual = self.plan.scale.finals.final.epochs
        return tuple(sorted(length or usual for length in self.plan.scale.lengths))

    # ------------------------------------------------------------------ names of runs

    def training(self, curve: Curve | None, epochs: int, trial: int) -> Training:
        """Return the training of a curve (None: dense) at a length, in one trial."""
        plan, usual = self.plan, self.plan.scale.finals.final.epochs
        length = None if epochs == usual else epochs
        of_all = plan.dense(length) if curve is None else plan.of_curve(curve, plan.scale.levels[0], epochs=length)
        return next(one for one in of_all if one.trial == trial)

    def pair_name(self, measure: str, curve: Curve | None, epochs: int, trial: int) -> str:
        """Return the name of a comparison in the plan."""
        one = self.training(curve, epochs, trial)
        return str(Pair(_QUESTIONS[measure], one, one))  # type: ignore[arg-type]  # the name needs only the first

    def name_of_side(self, hypothesis: Hypothesis, side: Side, epochs: int, trial: int) -> str:
        """Return the name of the run that one side of a hypothesis measures in a trial."""
        curve: Curve | None = getattr(hypothesis, side)
        if hypothesis.of == "accuracy":
            length = (hypothesis.dense_epochs or epochs) if curve is None else epochs
            return str(self.training(curve, length, trial))
        return self.pair_name(hypothesis.of, curve, epochs, trial)

    def check_beside(self, beside: Mapping[str, Study]) -> None:
        """Raise ValueError unless studies beside it have its regime, and every hypothesis has runs in one of the plans.

        Args:
            beside: The studies of `self.beside` by name.
        """
        # Phase: the regimes.
        for name, other in beside.items():
            scales = (self.plan.scale, other.plan.scale)
            if any(getattr(scales[0], field) != getattr(scales[1], field) for field in ("config", "levels", "lengths")):
                raise ValueError(f"{self.path}: the study {name} beside it has another regime")

        # Phase: the runs.
        planned = {str(run) for one in (self, *beside.values()) for run in (*one.plan.trainings(), *one.plan.pairs())}
        for one in self.hypotheses:
            for epochs in one.epochs:
                names = [self.name_of_side(one, side, epochs, trial) for trial in self.plan.trials for side in SIDES]
                if absent := [name for name in names if name not in planned]:
                    raise ValueError(
                        f"{self.path}: hypothesis {one.name} needs the run {absent[0]}, which neither this plan nor "
                        "one beside it makes; add its curve to curves, stability, connectivity or initial_norm"
                    )

    # ------------------------------------------------------------------ shares

    def units(self, index: int = 1, count: int = 1) -> list[str]:
        """Return the chains of share `index` of `count`, as whole trials in order.

        Raises ValueError for an index outside 1 … count.
        """
        if not 1 <= index <= count:
            raise ValueError(f"shard {index}/{count}: give i/n with 1 ≤ i ≤ n")
        trials = list(self.plan.trials)[index - 1 :: count]
        chains = self.plan.chains()
        return [name for trial in trials for name, trainings in chains.items() if trainings[0].trial == trial]


def read_study(path: Path, scales: Mapping[str, Callable[[Figure, str, str], Scale]]) -> Study:
    """Read a plan.

    Args:
        path: The TOML file; its stem names the study.
        scales: Name of a scale → function (figure, data set, network) → settings.

    Raises:
        ValueError: The plan is invalid; the message names the file and the error.
    """
    text = read_bounded(path, MOST_JSON_BYTES)
    try:
        return _study(path, hashlib.sha256(text).hexdigest(), tomllib.loads(text.decode()), scales)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        said = f"it lacks {error}" if isinstance(error, KeyError) else one_line(error)
        raise ValueError(f"{path}: {said}") from error


def _study(
    path: Path, sha256: str, values: dict[str, Any], scales: Mapping[str, Callable[[Figure, str, str], Scale]]
) -> Study:
    # Phase: check the fields.
    _check_fields("the plan", values, _TOP, _OPTIONAL)
    regime = values["regime"]
    _check_fields("regime", regime, _REGIME, {})
    if regime["first_trial"] < 1:
        raise ValueError(f"first_trial is {regime['first_trial']}; it must be 1 or more")
    if not 1 <= regime["trials"] <= MOST_TRIALS:
        raise ValueError(f"trials is {regime['trials']}; it must be 1 to {MOST_TRIALS}")
    if not 0 < (margin := float(values["margin_points"])) < math.inf:
        raise ValueError(f"margin_points is {margin:g}; it must be above 0, and finite")
    for method in values.get("initial_norm", ()):
        known("method", method, list(METHODS))

    # Phase: trainings and comparisons, as a figure.
    figure = Figure(
        name=path.stem,
        title=values["title"],
        subjects={regime["dataset"]: (regime["network"],)},
        curves=tuple(map(Curve.parse, values["curves"])),
        claims=(),
        stability=tuple(map(Curve.parse, values.get("stability", ()))),
        connectivity=tuple(map(Curve.parse, values.get("connectivity", ()))),
        initial_norm=tuple(values.get("initial_norm", ())),
        source=None,
        dense_at_ticket_cost=True,
    )
    usual, *further = lengths = sorted(regime["final_epochs"])
    scale = scales[known("scale", regime["scale"], list(scales))](figure, regime["dataset"], regime["network"])
    if usual != scale.finals.final.epochs:
        raise ValueError(f"final_epochs begin with {usual}, but the scale has {scale.finals.final.epochs}")
    if not further or not set(further) <= {2 * usual, 5 * usual} or len(set(lengths)) < len(lengths):
        wanted = f"{usual} and {5 * usual} (or {2 * usual})"
        raise ValueError(f"final_epochs are {regime['final_epochs']}; give {wanted}, to tell speed from the end")
    scale = replace(
        scale,
        levels=(regime["level"],),
        barrier_level=regime["level"],
        trials=regime["trials"],
        first_trial=regime["first_trial"],
        further_epochs=tuple(further),
    )
    plan = FigurePlan(figure, scale)
    _check_network(plan)
    _check_retraining(plan)

    # Phase: hypotheses.
    dense = {length or usual for length in plan.dense_lengths}
    hypotheses = tuple(_hypothesis(one, (usual, *further), dense) for one in values["hypotheses"])
    names = [one.name for one in hypotheses]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two hypotheses have the name {', '.join(twice)}; give each its own")
    if path.stem in (beside := values.get("beside", [])):
        raise ValueError(f"beside is {beside}; give names of other studies")
    return Study(
        name=path.stem,
        title=values["title"],
        question=values["question"].strip(),
        plan=plan,
        hypotheses=hypotheses,
        margin_points=margin,
        stopping=values["stopping"].strip(),
        beside=tuple(beside),
        path=path,
        sha256=sha256,
        notes=values.get("notes", "").strip(),
    )


def _check_network(plan: FigurePlan) -> None:
    """Raise ValueError for an unknown network or data set, and for a level that leaves no weight."""
    config, level = plan.scale.config, plan.scale.levels[0]
    definition = Definition.of(config.model)
    known("data set", config.data.name, list(DATASETS))
    if definition.kind == "built-in" and plan.num_weights[0] * plan.scale.density(level) < 1:
        raise ValueError(f"level is {level}; no weight of {config.model.name} is left there")


def _check_retraining(plan: FigurePlan) -> None:
    """Raise ValueError for `retrain` of a full training at a second length or with a second noise.

    A level of IMP or WR is a full training, so its `retrain` is the level itself and exists only once.
    """
    for one in plan.trainings():
        curve = one.curve
        if curve is None or curve.kind != "retrain":
            continue
        # Methods whose levels are full trainings override `retraining`.
        if type(METHODS[curve.method]).retraining is Method.retraining:
            continue
        if one.twin or one.epochs is not None:
            second = "noise" if one.twin else f"length ({one.epochs} epochs)"
            raise ValueError(
                f"{curve} has no second {second}: levels of {curve.method} are full trainings, and retrain is the "
                f"level itself; use 'level ({curve.method})'"
            )


def _hypothesis(values: dict[str, Any], lengths: tuple[int, ...], dense_lengths: set[int]) -> Hypothesis:
    """Parse a hypothesis.

    Args:
        values: Its table in the plan.
        lengths: Epochs of the final trainings.
        dense_lengths: Epochs of the dense trainings.
    """
    # Phase: check the fields.
    name = f"hypothesis {values.get('name', '?')}"
    _check_fields(name, values, _HYPOTHESIS, _FURTHER)
    for field, allowed in (("of", get_args(Measure)), ("expects", get_args(Expectation))):
        if values[field] not in allowed:
            raise ValueError(f"{name}: {field} is {values[field]!r}; allowed: {', '.join(allowed)}")
    epochs = tuple(values.get("epochs", lengths))
    if not epochs or len(set(epochs)) < len(epochs) or not set(epochs) <= set(lengths):
        raise ValueError(f"{name}: epochs are {epochs}, but the final trainings have {lengths}")

    # Phase: parse and check both sides.
    if values["first"] == values["second"]:
        raise ValueError(f"{name}: both sides are {values['first']}")
    first, second = (None if side == DENSE else Curve.parse(side) for side in (values["first"], values["second"]))
    if (dense_epochs := values.get("dense_epochs")) is not None:
        if None not in (first, second) or values["of"] != "accuracy":
            raise ValueError(f"{name}: dense_epochs needs the accuracy of a side {DENSE!r}")
        if dense_epochs not in dense_lengths:
            raise ValueError(
                f"{name}: dense_epochs is {dense_epochs}, but dense is trained for {sorted(dense_lengths)}"
            )
        if dense_epochs < max(epochs):
            raise ValueError(
                f"{name}: dense_epochs is {dense_epochs}, less than the {max(epochs)} epochs of the other side; a "
                "dense network that is trained for less proves nothing"
            )
    return Hypothesis(
        values["name"],
        values["says"],
        cast(Measure, values["of"]),
        first,
        second,
        expects=cast(Expectation, values["expects"]),
        epochs=epochs,
        dense_epochs=dense_epochs,
    )


def _check_fields(of: str, values: Mapping[str, Any], needed: Mapping[str, Any], optional: Mapping[str, Any]) -> None:
    """Raise ValueError for a missing field, an unknown one, or one of another type.

    Args:
        of: The table, for messages.
        values: Its fields.
        needed: Field → type, such as list[int].
        optional: The same of fields that may be missing.
    """
    types = {**needed, **optional}
    if missing := sorted(needed.keys() - values.keys()):
        raise ValueError(f"{of} lacks {', '.join(missing)}")
    if unknown := sorted(values.keys() - types.keys()):
        raise ValueError(f"{of} has unknown fields {', '.join(unknown)}; known: {', '.join(sorted(types))}")
    for name, value in values.items():
        if not has_type(value, types[name]):
            raise ValueError(f"{of}: {name} is {value!r}; give {_IN_WORDS[types[name]]}")
        if value == [] and name in needed:
            raise ValueError(f"{of}: {name} is empty")


def has_type(value: object, wanted: Any) -> bool:
    """Return whether a JSON or TOML value has a type, such as int or list[str]. True and False are no numbers."""
    if get_origin(wanted) is list:
        return isinstance(value, list) and all(has_type(one, get_args(wanted)[0]) for one in value)
    if get_origin(wanted) is dict:
        return isinstance(value, dict) and all(has_type(one, get_args(wanted)[1]) for one in value.values())
    return isinstance(value, wanted) and not isinstance(value, bool)
