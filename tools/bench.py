"""Measure the harness against plain PyTorch, stock FFCV and its own goals; print one table.

python tools/bench.py                                  every row, an hour on 2 cores
python tools/bench.py --quick                          fewer repetitions, for a first look
python tools/bench.py --only step prune --json out.json

tools/benchmarks/sitting.py measures on a GPU. A missed goal is marked and is no error. Both sides of a ratio take turns
in one run: leave the machine alone.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script
# libopencv-dev brings TBB, numba then prefers it, and FFCV's writer never exits
os.environ.setdefault("NUMBA_THREADING_LAYER", "omp")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from tools.benchmarks.measure import HEADER, Row, about, seconds, table  # noqa: E402

Name = Literal["step", "loaders", "prune", "mask_size", "barrier", "level_overhead", "reload", "verify", "scale"]
HOMES: dict[Name, str] = {
    "step": "steps",
    "loaders": "loaders",
    "prune": "masks",
    "mask_size": "masks",
    "barrier": "barrier",
    "level_overhead": "lineage",
    "reload": "lineage",
    "verify": "lineage",
    "scale": "scale",
}
"""File of tools/benchmarks/ that holds the function of a benchmark, which has the benchmark's name."""


@dataclass(frozen=True)
class Arguments:
    """The benchmarks to run."""

    only: tuple[Name, ...] = tuple(HOMES)
    """These benchmarks instead of all."""
    quick: bool = False
    """Fewer repetitions and smaller tasks: wide intervals."""
    json: Path | None = None
    """Write rows, hardware and versions here as JSON too."""


def run(name: Name, quick: bool) -> Iterable[Row]:
    """Run one benchmark and return its rows."""
    rows: Iterable[Row] = getattr(importlib.import_module(f"tools.benchmarks.{HOMES[name]}"), name)(quick)
    return rows


def main(arguments: Arguments) -> int:
    """Measure, print, and return 1 if a benchmark broke (not if it missed its goal)."""
    head = about() | {"run": "quick: not for quoting" if arguments.quick else "full"}
    print(table([[name, value] for name, value in head.items()]) + "\n")
    found: list[tuple[str, Row]] = []
    broken: dict[str, str] = {}
    for name in dict.fromkeys(arguments.only):

        def measure(name: Name = name) -> None:
            try:
                found.extend((name, row) for row in run(name, arguments.quick))
            except Exception as error:
                traceback.print_exc()
                broken[name] = f"{type(error).__name__}: {error}"

        print(f"{name}: {seconds(measure):.0f} s", file=sys.stderr)
    rows = [row for _, row in found]
    print(table([HEADER, *(row.cells() for row in rows)]))
    print("\n" + "\n".join(f"{row.name}: {row.note}" for row in rows if row.note))
    print(f"\n{sum(row.verdict == 'met' for row in rows)} of {len(rows)} goals met")
    print("".join(f"BROKEN  {name}: {error}\n" for name, error in broken.items()), end="")
    if arguments.json is not None:
        measured = [{"benchmark": name, **asdict(row), "verdict": row.verdict} for name, row in found]
        result = {**head, "rows": measured, "broken": broken}
        arguments.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if broken else 0


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Arguments, description=__doc__)))
    except KeyboardInterrupt:
        sys.exit("interrupted")
