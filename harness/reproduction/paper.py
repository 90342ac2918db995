"""Numbers that the papers print in their figures and tables."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from importlib.resources import files

from harness.reproduction.figure import Curve

_NETWORKS = {"ResNet50": "resnet50", "MobileNetV2": "mobilenet_v2", "MLP-Mixer": "mlp_mixer"}
_TABLES = ("table1", "table2")
_GEM_MINER = {0.0372: 83.4, 0.0144: 77.89, 0.0059: 66.15}
"""Density with the classifier → accuracy of ResNet-20 on CIFAR-10, percent.

The printed 1.4 % is 1.44 % in its authors' configurations.
"""


@dataclass(frozen=True)
class Printed:
    """Printed test accuracy, percent: mean and sd over trials."""

    mean: float
    sd: float | None = None


def prints_numbers(figure: str) -> bool:
    """Return whether a paper prints numbers for a figure; most figures are plots without numbers."""
    return figure in (*_TABLES, "gem_miner")


def printed(figure: str, data: str, network: str, curve: Curve | None, density: float) -> Printed | None:
    """Return the printed number of a curve (None: dense) at a target density (0..1); None if there is none.

    Tables 1 and 2 round densities up to two digits.
    """
    kind = "dense" if curve is None else f"{curve.method}_{curve.kind}"
    if figure in _TABLES and data == "imagenet":
        return _table2().get((network, kind, 1.0 if curve is None else rounded_up(density)))
    if (figure, data, network, kind) == ("gem_miner", "cifar10", "resnet20", "gem_miner_level"):
        return Printed(_GEM_MINER[density]) if density in _GEM_MINER else None
    return None


def rounded_up(density: float) -> float:
    """Round a density up to two digits, as the paper does: it prints 0.8⁶ = 0.262 as 0.27."""
    return math.ceil(round(100 * density, 6)) / 100


def _table2() -> dict[tuple[str, str, float], Printed]:
    text = files("harness.reproduction").joinpath("table2_imagenet.csv").read_text(encoding="utf-8")
    return {
        (_NETWORKS[row["model"]], row["kind"], float(row["remaining_params"])): Printed(
            float(row["top1_percent"]), float(row["std"])
        )
        for row in csv.DictReader(text.splitlines())
    }
