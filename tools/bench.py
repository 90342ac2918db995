"""Measure the harness against plain PyTorch, stock FFCV and its own goals; print one table.

python tools/bench.py                                  every row, half an hour on 2 cores
python tools/bench.py --quick                          seconds a row, for a first look
python tools/bench.py --only step prune --json out.json

tools/benchmarks/sitting.py measures on a GPU.

A goal that is missed is marked and is no error. Ratios come from one run, both sides in turns: leave the machine alone.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import tyro

ROOT = Path(__file__).resolve().parents[1]
# libopencv-dev brings TBB, numba then prefers it, and FFCV's writer never exits
os.environ.setdefault("NUMBA_THREADING_LAYER", "omp")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

Name = Literal["step", "loaders", "prune", "mask_size", "barrier", "level_overhead", "reload", "verify", "scale"]
NAMES: tuple[Name, ...] = get_args(Name)


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    only: tuple[Name, ...] = NAMES
    """These rows instead of all."""
    quick: bool = False
    """Fewer repetitions and smaller tasks: seconds a row, wide intervals."""
    json: Path | None = None
    """Write rows, hardware and versions here as JSON too; - is standard output, after the table."""


def main(arguments: Arguments) -> int:
    """Measure, print, and return 1 if a benchmark broke (not if it missed its goal)."""
    sys.path.insert(0, str(ROOT))  # the rows are modules of tools.benchmarks
    about = _about(arguments.quick)
    print("\n".join(f"{name:9} {value}" for name, value in about.items()) + "\n")
    found: list[dict[str, Any]] = []
    broken: dict[str, str] = {}
    for name in dict.fromkeys(arguments.only):
        started = time.perf_counter()
        try:
            found += [{"benchmark": name, **asdict(row)} for row in _rows(name, arguments.quick)]
        except Exception as error:
            traceback.print_exc()
            broken[name] = f"{type(error).__name__}: {error}"
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    print(_table(found))
    _print_summary(found, broken)
    if arguments.json is not None:
        _write_json(arguments.json, {**about, "rows": found, "broken": broken})
    return 1 if broken else 0


def _rows(name: Name, quick: bool) -> Sequence[Any]:
    rows: Sequence[Any] = importlib.import_module(f"tools.benchmarks.{name}").rows(quick)
    return rows


def _about(quick: bool) -> dict[str, str]:
    from tools.benchmarks.about import about

    return about() | {"run": "quick: fewer repetitions and smaller tasks, not for quoting" if quick else "full"}


def _table(rows: Sequence[dict[str, Any]]) -> str:
    header = ["what", "ours", "reference", "ratio", "interval", "goal", ""]
    cells = [header] + [
        [
            row["name"],
            _number(row["ours"]),
            _number(row["reference"]),
            f"{row['ratio']:.3f}",
            f"{row['low']:.3f} … {row['high']:.3f}",
            row["goal"],
            "reached" if row["reached"] else "MISSED",
        ]
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
    numeric = {1, 2, 3, 4}
    lines = []
    for line, note in zip(cells, [None, *(row["note"] for row in rows)], strict=True):
        padded = [
            text.rjust(width) if column in numeric else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
        if note:
            lines.append(f"    {note}")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _print_summary(rows: Sequence[dict[str, Any]], broken: dict[str, str]) -> None:
    missed = [row["name"] for row in rows if not row["reached"]]
    print(f"\n{len(rows) - len(missed)} of {len(rows)} goals reached")
    for name in missed:
        print(f"MISSED  {name}")
    for name, error in broken.items():
        print(f"BROKEN  {name}: {error}")


def _write_json(path: Path, result: dict[str, Any]) -> None:
    text = json.dumps(result, indent=1, ensure_ascii=False)
    if str(path) == "-":
        print(text)
    else:
        path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Arguments, description=__doc__)))
    except KeyboardInterrupt:
        sys.exit("interrupted")
