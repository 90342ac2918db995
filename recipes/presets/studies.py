"""The planned studies: read their plans and records, and write their pages."""

from __future__ import annotations

from pathlib import Path

from harness.common.tables import print_markdown
from harness.config import known
from harness.reproduction.study import Study, read_study
from harness.reproduction.study_page import write_page
from harness.reproduction.study_records import directory_of
from harness.reproduction.study_results import StudyResults
from recipes.presets.figure_options import STUDIES
from recipes.presets.figures import SCALES


def study_named(name: str) -> Study:
    """Read and check the plan of a study.

    Raises ValueError for an unknown name, and for a plan that could not be carried out or judged.
    """
    study = _read(name)
    study.check_beside({other: _read(other) for other in study.beside})
    return study


def _read(name: str) -> Study:
    names = sorted(path.stem for path in STUDIES.glob("*.toml"))
    return read_study(STUDIES / f"{known('study', name, names)}.toml", SCALES)


def read_results(study: Study, results: Path) -> StudyResults:
    """Read the records of a study and of the studies that its page compares it with."""
    return StudyResults.read(study, results, {name: _read(name) for name in study.beside})


def write_study_page(study: Study, results: Path) -> None:
    """Write the page of a study from its records. This needs neither runs nor data."""
    directory = directory_of(study.name, results).parent
    write_page(read_results(study, results), directory)
    print_markdown((directory / "page.md").read_text(encoding="utf-8"))
    print(f"page, tables and figure: {directory}")
