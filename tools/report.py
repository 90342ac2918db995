"""Write a figure or table of the paper from runs that exist: plots, tables, a result page. Nothing is trained.

    python tools/report.py fig3 --dataset cifar100 --network resnet50_cifar
    python tools/report.py fig3 --scale small --dataset fashion_mnist_small
    python tools/report.py --study depth      # from the records under docs/results, without any store

The page says which runs are missing, and `accelerate launch recipes/reproduce.py` with the same options makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.cli.errors import clear_errors
from harness.cli.options import parse
from recipes.presets.figure_options import RESULTS, FigureOptions


@dataclass(frozen=True)
class ReportOptions(FigureOptions):
    """Which figure to show."""

    settings: tuple[str, ...] = ()
    """The `settings` tag of the runs, where runs were made in several ways; of the dense runs, too, for `transfer`."""
    study: str | None = None
    """Instead of FIGURE: a study of recipes/studies."""
    results: Path = RESULTS
    """Where a study's records are, and its page goes."""


if __name__ == "__main__":
    with clear_errors():
        asked = parse(ReportOptions, __doc__)
        # Imported after the options are read: these load torch, and `--help` must not.
        from harness.cli.launch import store_of
        from harness.reproduction.report import show
        from recipes.reproduce import study_named, write_study_page

        if bool(asked.figure) == bool(asked.study):
            raise ValueError("give a FIGURE or --study NAME")
        if asked.study:
            write_study_page(study_named(asked.study), asked.results)
        else:
            show(store_of(asked.runs, asked.experiment, offline=asked.offline), asked.plan, asked.settings, asked.out)
