"""The page of a study: its plan, how far it is, whether it was trained to the end, and what is shown."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from harness.analysis.plots import EpochSeries, Interval, plot_study
from harness.analysis.statistics import family_in_words, in_symbols, p_text
from harness.analysis.summary import Summary
from harness.reproduction.figure import Curve
from harness.reproduction.page import csv_text, interval_text, markdown, signed
from harness.reproduction.study import Hypothesis
from harness.reproduction.study_results import (
    FIXED_EPSILON,
    GAIN_POINTS,
    JudgedHypothesis,
    StudyResults,
    barrier_points,
)

_MEASURES = {
    "accuracy": "accuracy",
    "stability": "barrier between two noises",
    "connectivity": "barrier to the retrained ticket",
    "norm_init": "error of the copy with ψ_init − the ticket's",
}


def write_page(results: StudyResults, directory: Path) -> list[Path]:
    """Write page, tables, numbers and figure into `directory` and return them; ValueError if no trial is finished."""
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
    """Return the page as Markdown, with `image` (a file beside it)."""
    study, parts = results.study, []
    longest = study.final_epochs[-1]
    if results.is_untrained(longest):
        parts.append(
            f"**The dense network is not trained to the end after {longest} epochs: nothing is claimed against it.**"
        )
    parts += [
        f"# {study.title}",
        *_in_short(results),
        _plan(results),
        study.question,
        study.notes,
        f"![Accuracy over epochs, and differences]({image})",
        "## Is it trained to the end?",
        _trained(results),
        "## Test accuracy",
        markdown(*accuracy_table(results)),
        "## Hypotheses",
        markdown(*hypotheses_table(results)),
        _family(results),
        *_barriers(results),
        "## Runs",
        _provenance(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _in_short(results: StudyResults) -> list[str]:
    """Return what is shown and what is not, that of speed apart from the end; nothing before all is judged."""
    found: dict[str, dict[str, list[str]]] = {"the end": {}, "speed": {}, "tickets": {}}
    for one in results.judged:
        if one.verdict is not None:
            told = f"{one.hypothesis.says} ({one.hypothesis.name}, {one.epochs} epochs)"
            if one.hypothesis.of == "norm_init":
                told = f"{one.hypothesis.says} ({one.hypothesis.name})"
            found[_speaks_of(results, one)].setdefault(_verdict(one), []).append(told)
    heads = {"the end": "At the end of training", "speed": "Of speed alone", "tickets": "Of the tickets themselves"}
    return [
        "\n".join([f"**{heads[of]}**", "", *(f"- {word}: {'; '.join(says)}." for word, says in sorted(words.items()))])
        for of, words in found.items()
        if words
    ]


def _plan(results: StudyResults) -> str:
    study, scale = results.study, results.study.plan.scale
    trials = study.plan.trials
    lines = [
        f"{study.plan.subject}, density {scale.density(scale.levels[0]):.4f}; trials {trials[0]} to {trials[-1]}, each "
        "with a search of its own; final trainings of "
        + " and ".join(f"{epochs} epochs" for epochs in study.final_epochs)
        + ".",
        f"**Plan:** `recipes/studies/{study.path.name}`, SHA-256 {study.sha256}, "
        + (f"commit {results.commit}" if results.commit else "not committed")
        + f". Stopping rule: {study.stopping}",
        "**Departures from the plan:** " + (" ".join(results.departures) or "none."),
    ]
    done = len(results.trials)
    if not results.is_complete:
        lines.append(f"**{done} of {len(trials)} trials are finished: numbers so far, and nothing is judged.**")
    return "\n\n".join(lines)


def _trained(results: StudyResults) -> str:
    rows = []
    for epochs in results.dense_epochs:
        gain = results.dense_gain(epochs)
        found = Summary.of(results.accuracies(None, epochs))
        verdict = "" if gain is None else "no: speed alone" if results.is_untrained(epochs) else "yes"
        rows.append([str(epochs), _mean(found), "" if gain is None else signed(gain), verdict])
    table = markdown(["epochs", "dense accuracy %", "gained by the next length", "trained to the end"], rows)
    told = (
        f"The dense network counts as untrained at a length if the next longer one gains more than {GAIN_POINTS:g} "
        "point. At such a length differences are of speed, not of the end; nor are they where a compared kind itself "
        "gains as much. The longest one is all that a ticket costs, its search included."
    )
    return f"{table}\n\n{told}"


def accuracy_table(results: StudyResults) -> tuple[list[str], list[list[str]]]:
    """Return head and rows: mean and sd of each kind at each length, percent."""
    lengths = results.study.final_epochs
    head = ["trained from", *(f"{epochs} epochs" for epochs in lengths), f"gained from {lengths[0]} to {lengths[-1]}"]
    rows = []
    for curve in curves_of(results):
        found = [results.accuracies(curve, epochs) for epochs in lengths]
        if all(found):
            means = [Summary.of(one) for one in found]
            rows.append([str(curve or "dense"), *map(_mean, means), signed(means[-1].mean - means[0].mean)])
    return head, rows


def curves_of(results: StudyResults) -> list[Curve | None]:
    """Return dense, the curves of the plan, and those that its hypotheses name of the studies beside it."""
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
    """Return head and rows: each hypothesis at each length, its contrast and verdict."""
    head = ["", "hypothesis", "of", "first", "second", "epochs", "speaks of", "tested", "first − second"]
    head += ["95 % interval", "p (Holm)", "verdict"]
    rows = []
    for one in results.judged:
        said = one.hypothesis
        margin = results.study.margin_points if said.expects in ("equal", "not_worse") else None
        p = "" if one.verdict is None else p_text(one.verdict.holm_p)
        rows.append(
            [
                *(said.name, said.says, _MEASURES[said.of], _side(said, said.first), _side(said, said.second)),
                *(str(one.epochs) if said.of != "norm_init" else "none", _speaks_of(results, one)),
                *(in_symbols(said.expects, margin, "first", "second"), signed(one.contrast.mean)),
                *(interval_text(one.contrast.interval), p, _verdict(one)),
            ]
        )
    return head, rows


def _side(said: Hypothesis, curve: Curve | None) -> str:
    if curve is not None:
        return str(curve)
    return f"dense ({said.dense_epochs} epochs)" if said.dense_epochs else "dense"


def _speaks_of(results: StudyResults, one: JudgedHypothesis) -> str:
    if one.hypothesis.of == "norm_init":
        return "tickets"
    return "speed" if results.is_of_speed(one.hypothesis, one.epochs) else "the end"


def _verdict(one: JudgedHypothesis) -> str:
    if one.verdict is None:
        return f"not judged: {one.why_not}"
    return one.verdict.word + (f" ({one.verdict.reason})" if one.verdict.reason else "")


def _family(results: StudyResults) -> str:
    verdicts = [one.verdict for one in results.judged if one.verdict is not None]
    told = [
        "Differences are in percentage points, of one trial each; p is exact, by sign flips over trials, and corrected "
        "after Holm for all rows of this table, judged or not. Intervals of accuracy are bootstrapped over trials and "
        "test images, those of barriers over trials alone."
    ]
    alone = [one for one in results.judged if one.hypothesis.of == "accuracy" and one.contrast.images is None]
    if alone:
        rows = ", ".join(f"{one.hypothesis.name} at {one.epochs} epochs" for one in alone)
        told.append(f"Over trials alone, too, since not all of their runs keep single test images: {rows}.")
    return "\n\n".join([*told, *([family_in_words(verdicts)] if verdicts else [])])


def _barriers(results: StudyResults) -> list[str]:
    study, figure = results.study, results.study.plan.figure
    wanted: list[tuple[str, Curve, int]] = []
    for epochs in study.final_epochs:
        wanted += [("stability", curve, epochs) for curve in figure.stability]
        wanted += [("connectivity", curve, epochs) for curve in figure.connectivity]
    wanted += [("norm_init", Curve(method, "level"), study.final_epochs[0]) for method in figure.initial_norm]
    rows = []
    for measure, curve, epochs in wanted:
        found = results.barriers(measure, curve, epochs)
        if not found:
            continue
        curves = [run.curve for run in found if run.curve is not None]
        before = measure == "norm_init"  # of tickets: no final training has a spread
        spreads: list[float | None] = (
            [None, None] if before else [results.epsilon(replace(curve, kind="retrain"), epochs), None]
        )
        if not before and not results.is_untrained(epochs) and not results.is_untrained(study.final_epochs[-1]):
            spreads[1] = results.epsilon(None, epochs)
        # the paper's barrier, but of a copy with ψ_init the difference itself
        judged_by = [
            abs(barrier_points(run, measure)) if before else one.barrier for run, one in zip(found, curves, strict=True)
        ]
        rows.append(
            [
                *(_MEASURES[measure], str(curve), "none" if before else str(epochs)),
                _mean(Summary.of([barrier_points(run, measure) for run in found])),
                *(_mean(Summary.of([getattr(one, name) for one in curves])) for name in ("barrier", "floor")),
                f"{sum(one <= FIXED_EPSILON for one in judged_by)} of {len(curves)}",
                *(
                    f"{sum(one <= most for one in judged_by)} ({most:.2f})" if most is not None else ""
                    for most in spreads
                ),
            ]
        )
    if not rows:
        return []
    head = ["comparison", "trained from", "epochs", "above the line", "barrier", "floor"]
    head += [f"within {FIXED_EPSILON:g} point", "within ε of retrain", "within ε of dense"]
    told = (
        "Percentage points of test error, mean and sd over trials. Above the line: the largest excess over the "
        "straight line between the two ends; for a copy with ψ_init the difference of the two errors itself. Barrier: "
        "the paper's, which is at least half the difference of the two ends (floor). ε is the sd of the error of "
        "`retrain` over trials, or of the dense network of the same length (the paper's) where that is trained to the "
        "end; in how many trials the barrier, or the difference of the errors, is within it."
    )
    dense, longest = results.epsilon(None, study.final_epochs[-1]), study.final_epochs[-1]
    if dense is not None and not results.is_untrained(longest):
        told += f" The paper's ε, the sd of the dense error over trials, is {dense:.2f} after {longest} epochs."
    return ["## Error barriers", markdown(head, rows), told]


def _provenance(results: StudyResults) -> str:
    chains = list({chain.chain: chain for chain in reversed(results.all_chains)}.values())
    runs = [run for chain in chains for run in chain.runs]
    hours = sum(run.finished_ms - run.started_ms for run in {run.key: run for run in runs}.values()) / 3_600_000
    commits = sorted({run.commit[:12] + run.commit[40:] for run in runs})
    lines = [
        f"{len(runs)} runs in {len(chains)} chains: {hours:.1f} hours in all, as the clock went. The records of each, "
        "with one bit for each test image, stand in `runs/`; every chain was verified before it was recorded.",
        f"Hardware: {'; '.join(sorted({chain.hardware for chain in chains}))}. Code: {', '.join(commits)}.",
        f"Made by `python recipes/reproduce.py --study {results.study.name}`; the same command makes trials that are "
        "missing and writes this page anew. With `--again CHAIN --runs mine --offline` it makes one recorded chain, a "
        "file of `runs/`, once more and prints each number beside the recorded one.",
    ]
    return "\n\n".join(lines)


def _draw(results: StudyResults, stem: Path) -> list[Path]:
    """Draw accuracy over final epochs, and the difference of each hypothesis."""
    series = []
    for curve in curves_of(results):
        if curve is not None:
            points = {epochs: results.accuracies(curve, epochs) for epochs in results.study.final_epochs}
            series += [EpochSeries(curve.use, curve.finder, points)] if all(points.values()) else []
    dense = {epochs: results.accuracies(None, epochs) for epochs in results.dense_epochs}
    intervals = [
        Interval(_label(results, one), one.contrast.mean, one.contrast.interval, _short(one))
        for one in results.judged
        if one.hypothesis.of == "accuracy"
    ]
    title, margin = results.study.title, results.study.margin_points
    return plot_study(series, dense, intervals, stem, title=title, margin=margin)


def _label(results: StudyResults, one: JudgedHypothesis) -> str:
    said = one.hypothesis
    margin = results.study.margin_points if said.expects in ("equal", "not_worse") else None
    speaks_of = f": {_speaks_of(results, one)}" if results.is_complete else ""
    formula = in_symbols(said.expects, margin, _side(said, said.first), _side(said, said.second))
    return f"({said.name}) {formula}\nafter {one.epochs} epochs{speaks_of}"


def _short(one: JudgedHypothesis) -> str:
    return "" if one.verdict is None else one.verdict.word


def _numbers(results: StudyResults) -> dict[str, Any]:
    """Return all that the page says, in full precision, for programs."""
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
