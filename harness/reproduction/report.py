"""Write a figure's page to a directory and commit it as a run, with the searches as its parents."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.analysis.plots import DENSITY, WEIGHTS, plot_accuracy, plot_panels
from harness.common.digest import sha256_json
from harness.common.escape import redact
from harness.common.machine import launch_command
from harness.common.tables import print_markdown
from harness.config import to_json
from harness.lineage.nodes.code import code_version
from harness.lineage.nodes.record import LineageRecord, Metric, Parent
from harness.lineage.store import LineageStore
from harness.reproduction import page
from harness.reproduction.collect import collect
from harness.reproduction.figure import DENSE
from harness.reproduction.figure_plan import FigurePlan
from harness.reproduction.page import RUNS
from harness.reproduction.results import Judged, Point, Results
from harness.runs.archive import run_id_of
from harness.runs.delivery_thread import deliver

PAGE = "page.md"
NUMBERS = "results.json"
"""The page's numbers, for programs."""


def show(store: LineageStore, plan: FigurePlan, settings: Collection[str], out: Path, *, strict: bool = True) -> None:
    """Collect a plan's runs, write and print its page, and commit it as a run.

    Args:
        store: Where the runs are.
        plan: The figure and its scale.
        settings: Tags `settings` of the wanted runs (`collect`).
        out: Parent of the page's directory.
        strict: Whether each run must have one of these tags.
    """
    results = collect(store, plan, settings, strict=strict)
    directory = out / page_name(plan)
    write_report(results, directory)
    key = commit_report(store, results)
    print_markdown((directory / PAGE).read_text(encoding="utf-8").split(RUNS)[0])
    print(f"page, tables and plots: {directory}\nrun: {run_id_of(store, key) or key}")


def page_name(plan: FigurePlan) -> str:
    """Return the name of the page's directory."""
    config = plan.scale.config
    width = f"-w{config.model.width}" if config.model.width else ""
    return f"{plan.figure.name}-{config.data.name}-{config.model.name}{width}{plan.scale.variant}"


def write_report(results: Results, directory: Path) -> list[Path]:
    """Write page, tables and plots, and return their paths; raise ValueError if no training is finished."""
    if not results.trained:
        raise ValueError(f"no run of this plan is finished; missing: {', '.join(results.missing[:5])} …")
    directory.mkdir(parents=True, exist_ok=True)
    images = _draw(results, directory)
    tables = {
        "accuracy.csv": page.accuracy_table(results),
        "claims.csv": page.claims_table(results),
        "differences.csv": page.differences_table(results),
        "barriers.csv": page.barriers_table(results),
        "before_training.csv": page.before_training_table(results),
        "norm.csv": page.norm_table(results),
        "signs.csv": page.signs_table(results),
        "runs.csv": page.runs_table(results),
    }
    texts = {name: page.csv_text(*table) for name, table in tables.items() if table[1]}
    texts |= {PAGE: page.page(results, [one.name for one in images if one.suffix == ".png"])}
    texts |= {NUMBERS: json.dumps(_numbers(results), indent=1) + "\n"}
    for name, text in texts.items():
        (directory / name).write_text(text, encoding="utf-8")
    return [*images, *(directory / name for name in texts)]


def commit_report(store: LineageStore, results: Results) -> str:
    """Commit the page as a run, deliver it to MLflow, and return its key; equal runs give an equal key."""
    # Phase: key and numbers.
    determinants = _determinants(results)
    key = sha256_json(determinants)
    plan, config = results.plan, results.plan.scale.config
    penalties = {str(level): penalty for level, penalty in plan.scale.penalties.items()}
    now = int(time.time() * 1000)
    metrics = [Metric(_metric_name(point), point.accuracy_percent.mean, point.level, now) for point in results.points]

    # Phase: record, local commit, delivery.
    record = LineageRecord(
        key=key,
        kind="report",
        name=f"{plan.figure.name} {config.model.name} {config.data.name}",
        parents=tuple(Parent(key, "reported") for key in _sources(results)),
        config={
            "figure": plan.figure.name,
            "scale": {
                "search": to_json(config),
                "trials": plan.scale.trials,
                "shared_search": plan.shared_search,
                "levels": list(plan.scale.levels),
            }
            | ({"used_on": to_json(plan.scale.used_on)} if plan.scale.used_on else {})
            | ({"penalties": penalties} if penalties else {}),
            "reduction": plan.scale.reduction,
            "command": redact(launch_command()),
        },
        tags={"figure": plan.figure.name, "data": config.data.name, "model": config.model.name},
        metrics=tuple(metrics),
        code=code_version(),
        started_ms=now,
        finished_ms=now,
    )

    def write(directory: Path) -> None:
        write_report(results, directory)

    store.local.commit(record, write, determinants)
    deliver(store, key)
    return key


def _metric_name(point: Point) -> str:
    curve = point.curve
    name = DENSE if curve is None else f"{curve.finder} {curve.use}"
    # MLflow allows neither commas nor "=" in metric names.
    name += f" {point.length} epochs" if point.length else ""
    return f"accuracy_percent/{name.replace(' α=', ' alpha ')}"


def _sources(results: Results) -> list[str]:
    """Return the keys of the searches and of the dense runs, the page's parents.

    All other runs descend from them and are listed in results.json. A page can have hundreds of runs, but a tag that
    lists parents has limited length.
    """
    dense = [node.key for one, node in results.trained.items() if one.curve is None]
    return [*results.searches, *dense]


def _determinants(results: Results) -> dict[str, Any]:
    plan = results.plan
    return {
        "format": 3,
        "kind": "report",
        "figure": plan.figure.name,
        "trials": plan.scale.trials,
        "levels": list(plan.scale.levels),
        "reduction": plan.scale.reduction,
        "runs": [node.key for node in results.nodes],
        "missing": results.missing,
    }


def _draw(results: Results, directory: Path) -> list[Path]:
    """Draw accuracy by density, with one more panel for each question of the comparisons."""
    title = f"{results.plan.figure.title.split(':')[0]}: {results.plan.subject}"
    series, dense, stem = results.series, list(results.errors(None, 0).values()), directory / "figure"
    if not results.panels:
        axis = WEIGHTS if results.plan.figure.equal_weights else DENSITY
        return plot_accuracy(series, stem, dense_error_percent=dense, title=title, axis=axis)
    title += f"; lines between networks at density {results.barrier_density:.3g}"
    return plot_panels(series, results.panels, stem, dense_error_percent=dense, title=title)


def _numbers(results: Results) -> dict[str, Any]:
    """Return the page's numbers in full precision."""
    return {
        "figure": results.plan.figure.name,
        "reduction": results.plan.scale.reduction,
        "epsilon": results.epsilon,
        "points": [asdict(point) | {"curve": point.name, "difference": point.difference} for point in results.points],
        "claims": [_claim(claim) for claim in results.claims],
        "runs": {str(one): {"key": node.key, "run_id": node.run_id} for one, node in results.trained.items()},
        "barriers": {
            str(pair): {
                "question": pair.question,
                "curve": pair.first.in_words,
                "key": node.key,
                "run_id": node.run_id,
                **curve.to_dict(),
            }
            for pair, (node, curve) in results.compared.items()
        },
        "norm": {method: [asdict(one) for one in found] for method, found in results.norm.items()},
        "missing": results.missing,
    }


def _claim(claim: Judged) -> dict[str, Any]:
    stated = claim.statement
    return {
        "first": claim.sides[0],
        "second": claim.sides[1],
        "says": stated.says,
        "tested": stated.tested,
        "by_density": [{"density": density, "difference": one} for density, one in claim.by_density.items()],
        "verdict": asdict(claim.verdict),
    }
