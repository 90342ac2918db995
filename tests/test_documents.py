"""Check that the tests and files named in docs/coverage.md exist, and the form of README and CHANGELOG."""

from __future__ import annotations

import ast
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
TESTS = Path(__file__).resolve().parent
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")
LINKED = re.compile(r"\]\(([^)]+)\)")


def unshown(text: str) -> Iterator[str]:
    """Yield the problems of a coverage table.

    A row must name at least one test or linked file, or begin with "not run: ". All named tests and files must exist.

    Args:
        text: Markdown of the table.
    """
    for line in text.splitlines():
        if not line.startswith("| ") or line == "| statement | shown by |":
            continue
        statement, shown = re.split(r"(?<!\\)\|", line.strip("|"))
        tests, files = NAMED.findall(shown), LINKED.findall(shown)
        if not (tests or files or shown.strip().startswith("not run: ")):
            yield f"no evidence for{statement}"
        yield from (f"no test {file}::{name}" for file, name in tests if name not in functions(TESTS / file))
        yield from (f"no file {file}" for file in files if not (DOCS / file).is_file())


def functions(path: Path) -> set[str]:
    """Return the names of a file's top-level functions, without importing it."""
    if not path.is_file():
        return set()
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_row_of_the_coverage_table_names_existing_tests_or_files():
    text = (DOCS / "coverage.md").read_text()
    assert list(unshown(text)) == []
    assert len(NAMED.findall(text)) > 100


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("| a | `test_documents.py::test_that_is_not_there` |", "no test test_documents.py::test_that_is_not_there"),
        ("| a | `test_nowhere.py::test_a` |", "no test test_nowhere.py::test_a"),
        ("| a | [a run](results/nowhere.md) |", "no file results/nowhere.md"),
        ("| \\|a\\| is so | we looked |", "no evidence for \\|a\\| is so "),
    ],
)
def test_a_row_without_existing_evidence_is_found(row, complaint):
    assert list(unshown(row)) == [complaint]


@pytest.mark.skipif(not shutil.which("git") or not (DOCS.parent / ".git").exists(), reason="no clone")
def test_no_redirected_output_is_committed():
    """Find files without suffix at the repository root.

    A mistyped shell redirection creates such files.
    """
    words = ["git", "-C", str(DOCS.parent), "ls-files", ":(top,glob)*"]
    names = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    assert {name for name in names if "." not in name} == {"Dockerfile", "LICENSE", "Makefile"}


def test_the_changelog_has_each_heading_once_and_short_items():
    versions = (DOCS.parent / "CHANGELOG.md").read_text().split("\n## ")[1:]
    assert len(versions) >= 2
    for version in versions:
        headings = re.findall(r"^### (.*)$", version, re.M)
        assert headings == [name for name in ("Added", "Changed", "Fixed") if name in headings]
        items = re.findall(r"^- (.*(?:\n  .*)*)", version, re.M)
        assert items and [item for item in items if len(item.split()) > 15] == []


def test_the_readme_has_at_most_150_lines():
    assert len((DOCS.parent / "README.md").read_text().splitlines()) <= 150


def test_the_cores_per_gpu_follow_from_the_measured_images_per_second():
    text = (DOCS / "performance.md").read_text()
    speeds = [
        int(re.search(rf"^\| {name}[^|]*\| ([\d,]+) ", text, re.M)[1].replace(",", ""))
        for name in ("224 random resized crop from JPEG", "… proportion 0.5", "… raw")
    ]
    table = text.split("| images/s of training |")[1].split("\n\n")[0]
    rows = [[int(cell.replace(",", "")) for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert {4000, 5500} <= {row[0] for row in rows}
    for rate, *cores in rows:
        assert cores == [math.ceil(rate / speed) + 1 for speed in speeds], rate
