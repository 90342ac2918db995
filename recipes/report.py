"""Write the page of a figure, table or study from finished runs, without training.

    python tools/report.py fig3 --dataset cifar100 --network resnet50_cifar
    python tools/report.py fig3 --scale small --dataset fashion_mnist_small
    python tools/report.py --study depth      # from the records under docs/results; needs no runs

The page has plots and tables, and lists missing runs. `python recipes/reproduce.py` with the same options makes them,
except --settings, which only this command has.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from harness.cli.errors import clear_errors
from harness.cli.options import parse
from harness.common.optional import require
from recipes.presets.figure_options import RESULTS, FigureOptions, check_subject


@dataclass(frozen=True)
class ReportOptions(FigureOptions):
    """Options of the report."""

    settings: tuple[str, ...] = ()
    """Tags `settings` of the runs, if several launches match. For `transfer`, also give the tag of the dense runs."""
    study: str | None = None
    """A study of recipes/studies, instead of FIGURE."""
    results: Path = RESULTS
    """Directory of a study's records and page."""


def check_study(asked: ReportOptions) -> None:
    """Raise ValueError for options that a study's page does not heed."""
    usual = ReportOptions()
    names = [one.name for one in fields(asked) if one.name not in ("study", "results")]
    if other := [f"--{name.replace('_', '-')}" for name in names if getattr(asked, name) != getattr(usual, name)]:
        other = ["--lr and other settings" if name == "--changes" else name for name in other]
        raise ValueError(f"{', '.join(other)}: a study's page follows from its plan and --results alone; remove this")


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
        check_subject(asked.figure, asked.study, asked.results)
        if asked.study:
            check_study(asked)
            write_study_page(study_named(asked.study), asked.results)
        else:
            asked.check_width()
            show(store_of(asked.runs, asked.experiment, offline=asked.offline), asked.plan, asked.settings, asked.out)


if __name__ == "__main__":
    main()
