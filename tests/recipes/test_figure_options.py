"""Test that options of figures and studies which would have no effect are refused before anything runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from recipes.presets.figure_options import FigureOptions, ReproductionOptions
from recipes.report import ReportOptions, check_study
from recipes.reproduce import check_options
from tests.recipes.launching import REPOSITORY, run, tool


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (ReproductionOptions("fig3", study="end"), "give a FIGURE or --study NAME, not both: fig3 and end"),
        (ReproductionOptions(), "give a FIGURE (fig2, "),
        (ReproductionOptions(study="end", only=("aws-s11",)), "--only: no option of a study; --shard I/N makes"),
        (ReproductionOptions(study="end", out=Path("x")), "--out: no option of a study; --results chooses"),
        (ReproductionOptions(study="end", out=Path("x"), trials=3), "end.toml sets the rest"),
        (ReproductionOptions("fig3", list=True, only=("foo",)), "--list names all runs, and --only makes some"),
        (ReproductionOptions("fig3", results=Path("x")), "--results is for studies: --out chooses"),
    ],
)
def test_options_without_effect_are_refused(options: ReproductionOptions, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        check_options(options)


def test_the_page_of_a_study_takes_no_options_of_figures() -> None:
    check_study(ReportOptions(study="end", results=Path("x")))
    with pytest.raises(ValueError, match="^--trials, --settings: a study's page follows from its plan"):
        check_study(ReportOptions(study="end", trials=3, settings=("a",)))


def test_a_width_that_the_network_does_not_have_is_refused() -> None:
    FigureOptions("fig3").check_width()
    FigureOptions("fig4", width=32).check_width()
    with pytest.raises(ValueError, match="the width of resnet50_cifar cannot be set"):
        FigureOptions("fig3", width=8).check_width()
    with pytest.raises(ValueError, match="must be a multiple of 12"):
        FigureOptions("fig3", network="shufflenet_cifar", width=100).check_width()


@pytest.mark.long
def test_both_commands_check_the_width_before_they_price_or_read_runs(tmp_path: Path) -> None:
    reproduce = [sys.executable, str(REPOSITORY / "recipes/reproduce.py")]
    for said in (
        run(tmp_path, *reproduce, "fig3", "--width", "8", "--list", ok=False),
        tool(tmp_path, "report.py", "fig3", "--width", "8", ok=False),
    ):
        assert "error: the width of resnet50_cifar cannot be set (got 8)" in said


@pytest.mark.long
def test_a_directory_without_a_page_is_named_with_the_command_that_writes_one(tmp_path: Path) -> None:
    (line,) = tool(tmp_path, "side_by_side.py", "fig9", ok=False).splitlines()
    assert line.startswith("error: no results.json in fig9; give directories of pages")
    assert "recipes/reproduce.py FIGURE`" in line and "tools/report.py FIGURE`" in line
