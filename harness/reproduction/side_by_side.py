"""Several pages of one figure in one table, one column for each page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.analysis.summary import Summary
from harness.common.escape import one_line
from harness.common.files import read_json
from harness.common.program import command
from harness.lineage.nodes.record import BEFORE_TRAINING
from harness.reproduction.page import interval_text, signed
from harness.reproduction.results import QUESTIONS

Numbers = Mapping[str, Any]
"""A page's results.json."""


def read_numbers(path: Path) -> Numbers:
    """Read a page's results.json; ValueError with the file's name if it is no such file."""
    numbers = read_json(path)
    try:
        side_by_side({"": numbers})
        for point in numbers["points"]:
            _column(numbers, _rounded(point))
    except ValueError as error:
        raise ValueError(f"{path}: {one_line(error)}") from error
    except Exception as error:
        raise ValueError(f"{path} holds no numbers of a page: {error!r:.200}") from error
    return dict(numbers)


def side_by_side(pages: Mapping[str, Numbers]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the table, at the lowest density that all pages have.

    Differences and barriers are percentage points. [low, high] is a 95 % interval.

    Args:
        pages: Name of the column → numbers of the page.

    Raises:
        ValueError: There are no pages, they show several figures or have an old format, or they share no density.
    """
    figures = {numbers["figure"] for numbers in pages.values()}
    if len(figures) != 1:
        raise ValueError(f"these pages show {', '.join(sorted(figures)) or 'no figure'}; give pages of one figure")
    if old := [name for name, numbers in pages.items() if any("verdict" not in one for one in numbers["claims"])]:
        raise ValueError(f"{', '.join(old)}: the format is old; rewrite the page with `{command('report')}`")
    density = _lowest_common_density(list(pages.values()))
    rows: dict[str, dict[str, str]] = defaultdict(dict)
    for name, numbers in pages.items():
        for row, value in _column(numbers, density).items():
            rows[row][name] = value
    return [f"at density {density:.4f}", *pages], [
        [row, *(found.get(name, "") for name in pages)] for row, found in rows.items()
    ]


def _lowest_common_density(pages: Sequence[Numbers]) -> float:
    common = set.intersection(*({_rounded(point) for point in numbers["points"]} - {1.0} for numbers in pages))
    if not common:
        raise ValueError("these pages have no density in common; rerun one of them with the --levels of the others")
    return min(common)


def _rounded(entry: Mapping[str, Any]) -> float:
    return round(entry["density"], 4)


def _column(numbers: Numbers, density: float) -> dict[str, str]:
    """Return row name → cell of a page's column."""
    # Phase: accuracy.
    epsilon = numbers["epsilon"]
    column = {"trials": str(max(point["accuracy_percent"]["count"] for point in numbers["points"]))}
    # Match by level, since a method that prunes the classifier can have another density at the same level.
    levels = {point["level"] for point in numbers["points"] if _rounded(point) in (1.0, density)}
    for point in numbers["points"]:
        if point["level"] in levels:
            column[f"accuracy %: {point['curve']}"] = _spread(Summary(**point["accuracy_percent"]))
    # Phase: claims.
    for claim in numbers["claims"]:
        name = f"{claim['first']} − {claim['second']}"
        for one in claim["by_density"]:
            if _rounded(one) == density:
                column[name] = signed(one["difference"])
        column[f"{name}, mean over densities of the page"] = _judged(claim["verdict"])
    # Phase: barriers and norm parameters.
    column["ε"] = "" if epsilon is None else f"{epsilon:.2f}"
    barriers: dict[str, list[float]] = defaultdict(list)
    for one in numbers["barriers"].values():
        name = f"{QUESTIONS[one['question']]}: {one['curve']}"
        if one["question"] in BEFORE_TRAINING:
            # α = 0 is the copy, α = 1 the ticket.
            barriers[f"error increase, {name}"].append(one["error_percent"][0] - one["error_percent"][-1])
            continue
        for number, word in (("barrier_above_line", "above the line"), ("barrier", "barrier"), ("floor", "floor")):
            barriers[f"{word}, {name}"].append(one[number])
    for method, found in numbers.get("norm", {}).items():
        scales = [Summary.of(one[name] for one in found).mean for name in ("scale_mean", "scale_sd")]
        column[f"scales of normalisation layers, mean and sd: {method}"] = f"{scales[0]:.2f}, {scales[1]:.2f}"
    return column | {row: _spread(Summary.of(found)) for row, found in barriers.items()}


def _spread(summary: Summary) -> str:
    return f"{summary.mean:.2f}" + ("" if summary.sd is None else f" ± {summary.sd:.2f}")


def _judged(verdict: Mapping[str, Any]) -> str:
    difference = f"{signed(verdict['difference'])} {interval_text(verdict['interval'])}".rstrip()
    return f"{difference}, {verdict['word']}"
