"""Write a figure or table of the paper from runs that exist: plots, tables, a result page. Nothing is trained.

    python tools/report.py fig3 --dataset cifar100 --network resnet50_cifar
    python tools/report.py fig3 --scale small --dataset fashion_mnist_small

The page says which runs are missing, and `accelerate launch recipes/reproduce.py` with the same options makes them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))  # what is made, and how large, stands there

from scales import Subject  # type: ignore[import-not-found]  # noqa: E402

from harness.cli.errors import clear_errors  # noqa: E402
from harness.cli.launch import store_of  # noqa: E402
from harness.cli.options import parse  # noqa: E402
from harness.reproduction.report import show  # noqa: E402


@dataclass(frozen=True)
class Report(Subject):
    """What is shown."""

    settings: tuple[str, ...] = ()
    """The `settings` tag of the runs, where runs were made in several ways; of the dense runs, too, for `transfer`."""


if __name__ == "__main__":
    with clear_errors():
        asked = parse(Report, __doc__)
        show(store_of(asked.runs, asked.experiment, offline=asked.offline), asked.plan, asked.settings, asked.out)
