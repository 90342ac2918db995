"""Test tables that compare several pages of one figure.

Each column has the numbers of one page, at a common density.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from harness.lineage.store import open_store
from harness.reproduction.collect import collect
from harness.reproduction.figure import figure_named
from harness.reproduction.page import claims_table, differences_table
from harness.reproduction.report import NUMBERS, _numbers, write_report
from harness.reproduction.results import Results
from harness.reproduction.side_by_side import side_by_side


@pytest.fixture
def results(made_up, plan) -> Results:
    made_up.everything()
    return collect(open_store(made_up.nodes.directory, offline=True), plan)


def numbers_of(results: Results, directory: Path) -> dict:
    write_report(results, directory)
    return json.loads((directory / NUMBERS).read_text())


def test_a_column_has_the_numbers_of_its_page(results: Results, tmp_path: Path):
    numbers = numbers_of(results, tmp_path)
    head, rows = side_by_side({"both levels": numbers})
    assert head == ["at density 0.5120", "both levels"]
    column = dict(rows)
    point = next(one for one in results.points if str(one.curve) == "signed_mask (aws)" and one.level == 3)
    accuracy = point.accuracy_percent
    assert column["accuracy %: signed_mask (aws)"] == f"{accuracy.mean:.2f} ± {accuracy.sd:.2f}"
    for row in claims_table(results)[1]:
        name, judged = f"{row[0]} − {row[1]}", f"{row[4]} {row[5]}, not shown"
        assert column[f"{name}, mean over densities of the page"] == judged and row[8].startswith("not shown")
    differences = {tuple(row[:2]): row[3] for row in differences_table(results)[1]}  # density 0.5120
    assert {what: column[" − ".join(what)] for what in differences} == differences and len(differences) == 8
    rows = [row for row in column if row.endswith(", SGD-noise stability: signed_mask (aws)")]
    assert [row.split(", ")[0] for row in rows] == ["above the line", "barrier", "floor"]
    # 20 − 7.21 and 20 − 7.24, because both ends have equal errors
    assert [column[row] for row in rows] == ["12.77 ± 0.02", "12.77 ± 0.02", "0.00 ± 0.00"]
    assert column["ε"] == f"{results.epsilon:.2f}" and column["trials"] == "2"


@pytest.mark.long
def test_pages_are_shown_at_the_lowest_density_that_all_have(results: Results, tmp_path: Path):
    scale = replace(results.plan.scale, levels=(1,), barrier_level=None)
    fewer = replace(results, plan=replace(results.plan, scale=scale), compared={})
    pages = {"all": numbers_of(results, tmp_path / "a"), "level 1": numbers_of(fewer, tmp_path / "b")}
    head, rows = side_by_side(pages)
    assert head == ["at density 0.8000", "all", "level 1"]
    accuracies = [row for row in rows if row[0].startswith("accuracy %")]
    # dense at the cost of a ticket: 9 epochs for level 3 on one page; the other lacks the 7 epochs for level 1
    longer = accuracies.pop(1)
    assert longer[0] == "accuracy %: dense, 9 epochs" and longer[2] == ""
    assert len(accuracies) == 6 and all(row[1] == row[2] != "" for row in accuracies)
    assert [row[2] for row in rows if row[0].startswith("barrier")] == [""] * 5


def test_of_a_ticket_and_its_copy_the_difference_of_errors_is_shown(made_up, plan):
    made = type(made_up)(made_up.nodes.directory, replace(plan, figure=figure_named("claims")))
    made.everything()
    numbers = _numbers(collect(open_store(made.nodes.directory, offline=True), made.plan))
    column = dict(side_by_side({"claims": numbers})[1])
    copies = {row: cell for row, cell in column.items() if "level (" in row}
    row = "error increase, ticket and {}: level ({})"
    assert copies == {
        row.format(copy, method): "32.50 ± 2.12"  # 31 and 34
        for copy in ("its copy with ψ_init", "abs(θ_init) ⊙ s")
        for method in ("lrr", "aws")
    }


def test_pages_that_cannot_be_compared_are_refused(results: Results, tmp_path: Path):
    numbers = numbers_of(results, tmp_path)
    for pages in ({}, {"a": numbers, "b": numbers | {"figure": "fig4"}}):
        with pytest.raises(ValueError, match="give pages of one figure"):
            side_by_side(pages)
    old = {"first": "a", "second": "b", "density": 0.8, "difference": {"mean": 1.0, "interval": None}}
    with pytest.raises(ValueError, match="a: the format is old; rewrite the page with `python .*tools/report.py`"):
        side_by_side({"a": numbers | {"claims": [old]}, "b": numbers})
    dense = [point for point in numbers["points"] if point["curve"] == "dense"]
    with pytest.raises(ValueError, match="no density in common"):
        side_by_side({"a": numbers, "b": numbers | {"points": dense}})


def test_a_method_of_other_densities_is_shown_at_its_level(made_up, plan, tmp_path: Path):
    """Show Gem-Miner at equal numbers of weights.

    Its densities include the classifier.
    """
    made = type(made_up)(made_up.nodes.directory / "equal", replace(plan, figure=figure_named("fig4_equal")))
    made.everything()
    results = collect(open_store(made.nodes.directory, offline=True), made.plan)
    numbers = numbers_of(replace(results, densities=results.densities | {("gem_miner", 3): [0.55, 0.57]}), tmp_path)
    column = dict(side_by_side({"one": numbers})[1])
    assert column["accuracy %: level (gem_miner)"] == "47.00 ± 0.00"
    assert column["accuracy %: signed_mask (aws)"] == "92.67 ± 0.02"
