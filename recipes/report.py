"""Write the page of a figure, table or study from finished runs, without training.

    python tools/report.py fig3 --dataset cifar100 --network resnet50_cifar
    python tools/report.py fig3 --scale small --dataset fashion_mnist_small
    python tools/report.py --study depth      # from the records under docs/results; needs no runs

The page has plots and tables, and lists missing runs. `accelerate launch recipes/reproduce.py` with the same options
makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.cli.errors import clear_errors
from harness.cli.options import parse
from harness.common.optional import require
from recipes.presets.figure_options import RESULTS, FigureOptions


@dataclass(frozen=True)
class ReportOptions(FigureOptions):
    """Options of the report."""

    settings: tuple[str, ...] = ()
    """Tags `settings` of the runs, if several launches match. For `transfer`, also give the tag of the dense runs."""
    study: str | None = None
    """A study of recipes/studies, instead of FIGURE."""
    results: Path = RESULTS
    """Directory of a study's records and page."""


def main() -> None:
    """Write the page of a figure or study."""
    with clear_errors():
        asked = parse(ReportOptions, __doc__)
        # Imported after the options are read: these load torch, and `--help` must not.
        from harness.cli.launch import store_of
        from harness.reproduction.report import show
        from recipes.presets.studies import study_named, write_study_page

        for library in ("matplotlib", "scipy", "statsmodels"):
            require(library, "a page")
        if bool(asked.figure) == bool(asked.study):
            raise ValueError("give a FIGURE or --study NAME")
        if asked.study:
            write_study_page(study_named(asked.study), asked.results)
        else:
            show(store_of(asked.runs, asked.experiment, offline=asked.offline), asked.plan, asked.settings, asked.out)


if __name__ == "__main__":
    main()
