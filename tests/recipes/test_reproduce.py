"""Test recipes/reproduce.py: a figure in shards, and its page."""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path

import pytest

from tests.recipes.launching import REPOSITORY, elsewhere, nodes, run, tool

pytestmark = pytest.mark.long


SMOKE = ["fig3", "--scale", "smoke", "--dataset", "digits", "--network", "resnet8", "--levels", "2"]


def reproduce(where: Path, *options: str, ok: bool = True) -> str:
    return run(where, sys.executable, str(REPOSITORY / "recipes" / "reproduce.py"), *SMOKE, *options, ok=ok)


@pytest.mark.slow
def test_a_figure_in_two_shares_then_its_page(prepared: Path, tmp_path: Path):
    where = elsewhere(prepared, tmp_path)
    listed = reproduce(where, "--list").splitlines()
    assert all(line.startswith("python ") and " --only " in line for line in listed)
    reproduce(where, "--shard", "1/2", "--offline")
    first = nodes(where, "training").keys()
    assert not nodes(where, "report") and first
    printed = reproduce(where)  # makes the other share and the page
    assert "Not finished" not in printed and "not a reproduction" in printed
    trainings, analyses = nodes(where, "training"), nodes(where, "analysis")
    assert len(trainings) + len(analyses) + 2 == len(listed)  # plus two searches
    (report,) = nodes(where, "report").values()
    results = json.loads((where / "results/fig3-digits-resnet8-levels-2/results.json").read_text())
    assert {run["key"] for run in results["runs"].values()} == {record["key"] for record in trainings.values()}
    page = (where / "results/fig3-digits-resnet8-levels-2/page.md").read_bytes()
    again = tool(where, "report.py", *SMOKE)
    assert (where / "results/fig3-digits-resnet8-levels-2/page.md").read_bytes() == page
    assert len(nodes(where, "report")) == 1 and report["name"] == "fig3 resnet8 digits"
    assert "run: " in again


@pytest.mark.slow
def test_two_jobs_make_a_figure_once(prepared: Path, tmp_path: Path):
    where = elsewhere(prepared, tmp_path, tables=False)  # both jobs find no database
    printed = reproduce(where, "--jobs", "2")
    assert "Not finished" not in printed and len(nodes(where, "report")) == 1
    made = {path: path.stat().st_mtime_ns for path in (where / "runs").glob("*/record.json")}
    database = sqlite3.connect(where / "mlflow.db")
    assert database.execute("SELECT status, COUNT(*) FROM runs GROUP BY status").fetchall() == [("FINISHED", len(made))]
    reproduce(where, "--jobs", "3")
    assert made == {path: path.stat().st_mtime_ns for path in (where / "runs").glob("*/record.json")}


def test_an_unknown_data_set_or_shard_is_refused(prepared: Path):
    assert "known: imagenet" in tool(prepared, "report.py", "table2", "--dataset", "cifar100", ok=False, cold=True)
    assert "give i/n" in reproduce(prepared, "--shard", "half", ok=False)
