"""Write a figure or table of the paper from runs that exist: plots, tables, a result page. Nothing is trained.

    python tools/report.py fig3 --dataset cifar100 --network resnet50_cifar
    python tools/report.py fig3 --scale small --dataset fashion_mnist_small

The page says which runs are missing, and `accelerate launch recipes/reproduce.py` with the same options makes them.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.cli.errors import clear_errors
from harness.cli.launch import store_of
from harness.cli.options import parse
from harness.reproduction.report import show
from recipes.reproduce import FigureOptions


@dataclass(frozen=True)
class ReportOptions(FigureOptions):
    """Which figure to show."""

    settings: tuple[str, ...] = ()
    """The `settings` tag of the runs, where runs were made in several ways; of the dense runs, too, for `transfer`."""


if __name__ == "__main__":
    with clear_errors():
        asked = parse(ReportOptions, __doc__)
        show(store_of(asked.runs, asked.experiment, offline=asked.offline), asked.plan, asked.settings, asked.out)
