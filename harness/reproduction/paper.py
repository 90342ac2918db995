"""The numbers the paper prints."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from importlib.resources import files

from harness.reproduction.figure import Curve

_NETWORKS = {"ResNet50": "resnet50", "MobileNetV2": "mobilenet_v2", "MLP-Mixer": "mlp_mixer"}


@dataclass(frozen=True)
class Printed:
    """Test accuracy as printed, percent: mean and standard deviation of three trials."""

    mean: float
    sd: float


def printed(figure: str, network: str, curve: Curve | None, density: float) -> Printed | None:
    """Return what the paper prints for a curve (None: dense) at a density (0..1), or None where it prints nothing.

    The figures are plots without numbers; Tables 1 and 2 have them, their densities rounded up to two digits.
    """
    if figure not in ("table1", "table2"):
        return None
    kind = "dense" if curve is None else f"{curve.method}_{curve.kind}"
    return _table2().get((network, kind, 1.0 if curve is None else rounded_up(density)))


def rounded_up(density: float) -> float:
    """Return a density as the paper prints it: 0.8⁶ = 0.262 is its 0.27."""
    return math.ceil(round(100 * density, 6)) / 100


def _table2() -> dict[tuple[str, str, float], Printed]:
    text = files("harness.reproduction").joinpath("table2_imagenet.csv").read_text()
    return {
        (_NETWORKS[row["model"]], row["kind"], float(row["remaining_params"])): Printed(
            float(row["top1_percent"]), float(row["std"])
        )
        for row in csv.DictReader(text.splitlines())
    }
