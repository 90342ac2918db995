"""The page of a study: verdicts first, then accuracy, hypotheses, barriers and runs."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from harness.analysis.drawing import is_clipped
from harness.analysis.plots import EpochSeries, Interval, plot_study
from harness.analysis.statistics import family_in_words, in_symbols, needed_trials, p_text
from harness.analysis.summary import Summary
from harness.config import SearchConfig
from harness.reproduction.figure import Curve
from harness.reproduction.page import csv_text, interval_text, markdown, schedules, signed
from harness.reproduction.study import Hypothesis, Measure
from harness.reproduction.study_results import (
    FIXED_EPSILON,
    GAIN_POINTS,
    JudgedHypothesis,
    StudyResults,
    barrier_points,
)

_MEASURES = {
    "accuracy": "accuracy",
    "stability": "barrier, SGD-noise stability",
    "connectivity": "barrier, connectivity with retrain",
    "norm_init": "error increase with ψ_init",
}
_SCOPES = {"end": "After full training", "speed": "Speed only", "tickets": "Tickets before any final training"}
"""What a hypothesis is about, as headings of the verdicts."""


def write_page(results: StudyResults, directory: Path) -> list[Path]:
    """Write the page, its tables, numbers and plots, and return their paths.

    Raises ValueError if no trial is finished.
    """
    if not results.trials:
        raise ValueError(f"no trial of the study {results.study.name} is finished: nothing to show")
    directory.mkdir(parents=True, exist_ok=True)
    images = _draw(results, directory / "study")
    texts = {
        "accuracy.csv": csv_text(*accuracy_table(results)),
        "hypotheses.csv": csv_text(*hypotheses_table(results)),
        "results.json": json.dumps(_numbers(results), indent=1, ensure_ascii=False) + "\n",
        "page.md": page(results, next(one.name for one in images if one.suffix == ".png")),
    }
    for name, text in texts.items():
        (directory / name).write_text(text, encoding="utf-8")
    return [*images, *(directory / name for name in texts)]


def page(results: StudyResults, image: str) -> str:
    """Return the page as Markdown; `image` is a file in its directory."""
    study = results.study
    parts = [
        # The answer.
        f"# {study.title}",
        _status(results),
        *_verdicts(results),
        # The question and its plan.
        study.question,
        _plan(results),
        study.notes,
        # The numbers.
        f"![Test error over the final epochs, test accuracy at each length, and the differences]({image})",
        _caption(results),
        "## Test accuracy",
        markdown(*accuracy_table(results)),
        "## Is the dense network trained to the end?",
        _trained(results),
        "## Hypotheses",
        markdown(*hypotheses_table(results)),
        _family(results),
        *_barriers(results),
        "## Runs",
        _provenance(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _status(results: StudyResults) -> str:
    """Return how far the study is, and whether its dense network is trained to the end."""
    lines = []
    longest = results.study.final_epochs[-1]
    done, planned = len(results.trials), len(results.study.plan.trials)
    if results.is_untrained(longest):
        lines.append(
            f"**The dense network is not trained to the end after {longest} epochs. No claim is made against it.**"
        )
    if not results.is_complete:
        lines.append(
            f"**{done} of {planned} trials are finished. The numbers are provisional. No hypothesis is judged.**"
        )
    return "\n\n".join(lines)


def _verdicts(results: StudyResults) -> list[str]:
    """Return the verdicts by scope, as lists; empty until all trials are finished.

    They are formulas. The plan's sentences may say more than was tested, so they stand in the table only.
    """
    found: dict[str, dict[str, list[str]]] = {scope: {} for scope in _SCOPES}
    for one in results.judged:
        if one.verdict is not None:
            said = one.hypothesis
            length = "" if said.of == "norm_init" else f", {one.epochs} epochs"
            measure = "" if said.of == "accuracy" else f"{_MEASURES[said.of]}: "
            told = f"{measure}{_formula(results, said)} ({said.name}{length})"
            found[_scope(results, one)].setdefault(_verdict(one), []).append(told)
    lists = {
        scope: [f"- {word}: {'; '.join(says)}." for word, says in sorted(words.items())]
        for scope, words in found.items()
    }
    return ["\n".join([f"**{_SCOPES[scope]}**", "", *lines]) for scope, lines in lists.items() if lines]


def _plan(results: StudyResults) -> str:
    """Return the regime, the plan with its commit and stopping rule, and the departures from it."""
    study, scale = results.study, results.study.plan.scale
    trials = study.plan.trials
    lengths = " and ".join(f"{epochs} epochs" for epochs in study.final_epochs)
    commit = f"commit {results.commit}" if results.commit else "not committed"
    return "\n\n".join(
        [
            f"**Setting:** {study.plan.subject}, density {scale.density(scale.levels[0]):.4f}. Trials {trials[0]} to "
            f"{trials[-1]}, each with its own search. Final trainings of {lengths}. Precision: "
            f"{_precision(scale.finals)}.\n\n{schedules(study.plan)}",
            f"**Plan:** `recipes/studies/{study.path.name}`, SHA-256 {study.sha256}, {commit}.",
            f"**Stopping rule:** {study.stopping}",
            "**Departures from the plan:** " + (" ".join(results.departures) or "none."),
        ]
    )


def _precision(config: SearchConfig) -> str:
    """Return the precision that the plan asks for, in words."""
    return "float32" if config.precision == "no" else f"{config.precision} mixed precision"


def _caption(results: StudyResults) -> str:
    """Return the sentences that explain the plot."""
    lines = [
        "On top: mean test error by length of the final trainings. Where a line still falls, the shorter length shows "
        "speed. Below: test accuracy at each length, mean ± sd. Small dots are single trials. Colour and marker stand "
        "for the kind, filling for the method. The dotted line and the grey band repeat the dense network."
    ]
    if any(one.hypothesis.of == "accuracy" for one in results.judged):
        lines.append(
            "Then: differences of accuracy with their 95 % intervals. The grey band is "
            f"± {results.study.margin_points:g} point. The columns have different scales."
        )
    if any(one.hypothesis.of != "accuracy" for one in results.judged):
        lines.append("At the bottom: differences of barriers, or of errors with ψ_init.")
    if results.is_complete:
        lines.append("Filled dots are hypotheses that are shown.")
    lengths = [(curve, epochs) for curve in curves_of(results) for epochs in results.study.final_epochs]
    lengths += [(None, epochs) for epochs in results.dense_epochs]
    accuracies = [results.accuracies(*one) for one in lengths]
    if is_clipped(accuracies):
        lines.append("Error bars are clipped at 100 %.")
    if any(value == 100 for found in accuracies for value in found):
        lines.append("On top, a trial without errors is drawn at half the least error of the others.")
    return " ".join(lines)


def _trained(results: StudyResults) -> str:
    """Return the dense network at each length, and the rule."""
    rows = []
    for epochs in results.dense_epochs:
        gain = results.dense_gain(epochs)
        found = Summary.of(results.accuracies(None, epochs))
        verdict = "" if gain is None else "no: speed only" if results.is_untrained(epochs) else "yes"
        rows.append([str(epochs), _mean(found), "" if gain is None else signed(gain), verdict])
    table = markdown(["epochs", "dense accuracy %", "largest gain of a longer training", "trained to the end"], rows)
    told = (
        f"The dense network counts as untrained at a length if a longer one gains more than {GAIN_POINTS:g} point. "
        "Differences at such a length are about speed only. So are differences where a compared kind gains as much. "
        f"The longest length is what a ticket costs in all, with its search and {results.study.final_epochs[-1]} final "
        "epochs."
    )
    return f"{table}\n\n{told}"


def accuracy_table(results: StudyResults) -> tuple[list[str], list[list[str]]]:
    """Return head and rows: accuracy of each kind at each length, percent, mean ± sd."""
    lengths = results.study.final_epochs
    head = ["trained from", *(f"{epochs} epochs" for epochs in lengths), f"gain from {lengths[0]} to {lengths[-1]}"]
    rows = []
    for curve in curves_of(results):
        found = [results.accuracies(curve, epochs) for epochs in lengths]
        if all(found):
            means = [Summary.of(one) for one in found]
            rows.append([str(curve or "dense"), *map(_mean, means), signed(means[-1].mean - means[0].mean)])
    return head, rows


def curves_of(results: StudyResults) -> list[Curve | None]:
    """Return dense, the plan's curves, and curves of studies beside it that hypotheses name."""
    named = [
        curve
        for one in results.study.hypotheses
        if one.of == "accuracy"
        for curve in (one.first, one.second)
        if curve is not None
    ]
    return list(dict.fromkeys([None, *results.study.plan.figure.curves, *named]))


def _mean(summary: Summary) -> str:
    return f"{summary.mean:.2f}" + ("" if summary.sd is None else f" ± {summary.sd:.2f}")


def hypotheses_table(results: StudyResults) -> tuple[list[str], list[list[str]]]:
    """Return head and rows: each hypothesis at each length, with its contrast and verdict."""
    head = ["", "hypothesis", "measure", "first", "second", "epochs", "about", "tested", "first − second"]
    head += ["95 % interval", "p (Holm)", "verdict"]
    rows = []
    for one in results.judged:
        said = one.hypothesis
        p = "" if one.verdict is None else p_text(one.verdict.holm_p)
        rows.append(
            [
                *(said.name, said.says, _MEASURES[said.of], _side(said, said.first), _side(said, said.second)),
                *(str(one.epochs) if said.of != "norm_init" else "none", _scope(results, one)),
                *(in_symbols(said.expects, _margin(results, said), "first", "second"), signed(one.contrast.mean)),
                *(interval_text(one.contrast.interval), p, _verdict(one)),
            ]
        )
    return head, rows


def _side(said: Hypothesis, curve: Curve | None) -> str:
    if curve is not None:
        return str(curve)
    return f"dense ({said.dense_epochs} epochs)" if said.dense_epochs else "dense"


def _margin(results: StudyResults, said: Hypothesis) -> float | None:
    return results.study.margin_points if said.expects in ("equal", "not_worse") else None


def _formula(results: StudyResults, said: Hypothesis) -> str:
    """Return a hypothesis as a formula about its two sides."""
    return in_symbols(said.expects, _margin(results, said), _side(said, said.first), _side(said, said.second))


def _scope(results: StudyResults, one: JudgedHypothesis) -> str:
    """Return a key of `_SCOPES`."""
    if one.hypothesis.of == "norm_init":
        return "tickets"
    return "speed" if results.is_of_speed(one.hypothesis, one.epochs) else "end"


def _verdict(one: JudgedHypothesis) -> str:
    if one.verdict is None:
        return f"not judged: {one.why_not}"
    return one.verdict.word + (f" ({one.verdict.reason})" if one.verdict.reason else "")


def _family(results: StudyResults) -> str:
    verdicts = [one.verdict for one in results.judged if one.verdict is not None]
    measures = {one.hypothesis.of for one in results.judged}
    told = [
        "Differences are in percentage points, paired by trial. The p-values are exact sign-flip tests over trials, "
        "with Holm's correction for all rows of this table. Intervals are bootstrapped over trials and test images."
    ]
    if measures & {"stability", "connectivity"}:
        told[0] += " Those of barriers are over trials only, because a barrier is a maximum and has none for an image."
    by_image = ("accuracy", "norm_init")
    alone = [one for one in results.judged if one.hypothesis.of in by_image and one.contrast.images is None]
    if alone:
        rows = ", ".join(
            one.hypothesis.name + (f" at {one.epochs} epochs" if one.hypothesis.of == "accuracy" else "")
            for one in alone
        )
        told.append(f"Bootstrapped over trials only, because some runs lack results for single test images: {rows}.")
    if verdicts:
        told.append(family_in_words(verdicts))
    elif len(results.trials) < needed_trials(len(results.judged)):
        told.append("Intervals over so few trials are too narrow.")
    return "\n\n".join(told)


def _barriers(results: StudyResults) -> list[str]:
    """Return headings, tables and explanations of the error barriers and of copies with ψ_init, as far as there are."""
    study, figure = results.study, results.study.plan.figure
    parts = []

    # Phase: two trainings.
    wanted: list[tuple[Measure, Curve, int]] = []
    for epochs in study.final_epochs:
        wanted += [("stability", curve, epochs) for curve in figure.stability]
        wanted += [("connectivity", curve, epochs) for curve in figure.connectivity]
    if rows := [row for one in wanted if (row := _barrier_row(results, *one))]:
        head = ["comparison", "trained from", "epochs", "above the line", "barrier", "floor"]
        head += [f"within {FIXED_EPSILON:g} point", "within ε of retrain", "within ε of dense"]
        told = (
            "Percentage points of test error, mean ± sd over trials. Above the line: the largest excess over the "
            "straight line between the two ends. Barrier: the paper's, the largest excess over the mean of the two "
            "ends. Floor: half the difference of the two ends, which no barrier is below. ε is the sd of the error "
            "over trials, of `retrain` or of the dense network (the paper's choice). The dense ε needs a dense network "
            "that is trained to the end. The last three columns count the trials whose barrier is within the bound."
        )
        dense, longest = results.epsilon(None, study.final_epochs[-1]), study.final_epochs[-1]
        if dense is not None and not results.is_untrained(longest):
            told += f" The paper's ε is {dense:.2f} after {longest} epochs."
        parts += ["## Error barriers", markdown(head, rows), told]

    # Phase: a ticket and its copy.
    rows = []
    for method in figure.initial_norm:
        if found := results.barriers("norm_init", curve := Curve(method, "level"), study.final_epochs[0]):
            points = [barrier_points(run, "norm_init") for run in found]
            within = f"{sum(abs(point) <= FIXED_EPSILON for point in points)} of {len(points)}"
            rows.append([str(curve), _mean(Summary.of(points)), within])
    if rows:
        head = ["ticket", "error increase with ψ_init", f"within {FIXED_EPSILON:g} point"]
        told = (
            "Before any final training: the test error of a copy of the ticket with ψ_init minus the error of the "
            "ticket, percentage points, mean ± sd over trials. The paper's barrier is half of it, or more."
        )
        parts += ["## Tickets with initial norm parameters", markdown(head, rows), told]
    return parts


def _barrier_row(results: StudyResults, measure: Measure, curve: Curve, epochs: int) -> list[str]:
    """Return the row of a comparison of two trainings; empty if no trial has it."""
    found = results.barriers(measure, curve, epochs)
    curves = [run.curve for run in found if run.curve is not None]
    if not curves:
        return []
    bounds = [results.epsilon(replace(curve, kind="retrain"), epochs), None]
    if not results.is_untrained(epochs) and not results.is_untrained(results.study.final_epochs[-1]):
        bounds[1] = results.epsilon(None, epochs)
    numbers = [[getattr(one, name) for one in curves] for name in ("barrier_above_line", "barrier", "floor")]
    return [
        *(_MEASURES[measure], str(curve), str(epochs), *(_mean(Summary.of(one)) for one in numbers)),
        f"{sum(one.barrier <= FIXED_EPSILON for one in curves)} of {len(curves)}",
        *("" if most is None else f"{sum(one.connected(most) for one in curves)} ({most:.2f})" for most in bounds),
    ]


def _provenance(results: StudyResults) -> str:
    chains = list({chain.chain: chain for chain in reversed(results.all_chains)}.values())
    runs = [run for chain in chains for run in chain.runs]
    hours = sum(run.finished_ms - run.started_ms for run in {run.key: run for run in runs}.values()) / 3_600_000
    commits = sorted({run.commit[:12] + run.commit[40:] for run in runs})
    machines = sorted({machine for chain in chains for machine in chain.hardware.split("; ")})
    hardware = f"Hardware: {'; '.join(machines)}."
    if results.across_machines:
        hardware += (
            " The two sides of these hypotheses were made on machines that are recorded differently: "
            f"{'; '.join(results.across_machines)}. They share seeds, but equal steps may differ in their last bits."
        )
    lines = [
        f"{len(runs)} runs in {len(chains)} chains, {hours:.1f} hours of wall time. `runs/` holds the record of each "
        "run, with one bit for each test image. Every chain was verified before it was recorded.",
        f"{hardware} Code: {', '.join(commits)}.",
        f"Command: `tickets reproduce --study {results.study.name}`. It runs missing trials and rewrites "
        "this page. With `--again CHAIN --runs mine --offline` it repeats one recorded chain, a file of `runs/`, and "
        "prints each new number beside the recorded one.",
    ]
    return "\n\n".join(lines)


def _draw(results: StudyResults, stem: Path) -> list[Path]:
    """Draw accuracy and the differences of all hypotheses by length of the final trainings."""
    series = []
    for curve in curves_of(results):
        if curve is not None:
            points = {epochs: results.accuracies(curve, epochs) for epochs in results.study.final_epochs}
            series += [EpochSeries(curve.use, curve.finder, points)] if all(points.values()) else []
    dense = {epochs: results.accuracies(None, epochs) for epochs in results.dense_epochs}
    intervals = [_interval(results, one) for one in results.judged if one.hypothesis.of == "accuracy"]
    barriers = [_interval(results, one) for one in results.judged if one.hypothesis.of != "accuracy"]
    title, margin = results.study.title, results.study.margin_points
    return plot_study(series, dense, intervals, stem, title=title, margin=margin, barriers=barriers)


def _interval(results: StudyResults, one: JudgedHypothesis) -> Interval:
    """Return the plot's interval of a hypothesis; its formula names the row."""
    said, verdict = one.hypothesis, one.verdict
    formula = _formula(results, said)
    # Rows of accuracy stand in the column of their length. Others say what they compare, and at which length.
    compared = {"accuracy": "", "norm_init": "increase with ψ_init: "}.get(said.of, f"barrier, {one.epochs} epochs: ")
    # A space that no line breaks at keeps a kind and its method together.
    whole = f"({said.name}) {compared}{formula}".replace(" (aws", "\u00a0(aws").replace(" (lrr", "\u00a0(lrr")
    label = "\n".join(textwrap.wrap(whole, 30))
    word = "" if verdict is None else verdict.word
    speed = f"{word}, speed" if word and _scope(results, one) == "speed" else word
    is_shown = verdict is not None and verdict.word != "not shown"
    return Interval(label, one.epochs, one.contrast.mean, one.contrast.interval, is_shown, speed)


def _numbers(results: StudyResults) -> dict[str, Any]:
    """Return the page's numbers in full precision."""
    lengths = results.study.final_epochs
    return {
        "study": results.study.name,
        "plan": {"sha256": results.study.sha256, "commit": results.commit},
        "trials": results.trials,
        "departures": results.departures,
        "dense": {epochs: results.accuracies(None, epochs) for epochs in results.dense_epochs},
        "accuracy": {
            str(curve): {epochs: results.accuracies(curve, epochs) for epochs in lengths}
            for curve in curves_of(results)
            if curve is not None
        },
        "hypotheses": [
            {
                "name": one.hypothesis.name,
                "epochs": one.epochs,
                "differences": one.contrast.differences.tolist(),
                "verdict": asdict(one.verdict) if one.verdict else None,
                "why_not": one.why_not,
            }
            for one in results.judged
        ],
    }
