"""Measure the harness against plain PyTorch, stock FFCV and its own goals; print one table.

python tools/bench.py                                  every row, an hour on 2 cores
python tools/bench.py --quick --only step prune        fewer repetitions, of two of them
python tools/bench.py --only jobs                      20 more minutes: reproduce.py --jobs 2 against --jobs 1

A missed goal is marked and is no error. Both sides of a ratio take turns in one run: leave the machine alone.
"""

from __future__ import annotations

import argparse
import json
import os
import pkgutil
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script
# With libopencv-dev installed, numba prefers TBB, and then FFCV's writer never exits.
os.environ.setdefault("NUMBA_THREADING_LAYER", "omp")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

if TYPE_CHECKING:
    from tools.benchmarks.measure import Row

HOMES = {"step": "steps", "loop": "steps", "loaders": "loaders", "prune": "lineage", "mask_size": "lineage"}
HOMES["barrier"] = "steps"
HOMES |= dict.fromkeys(("level_overhead", "levels", "reload", "verify"), "lineage")
HOMES["jobs"] = "jobs"
"""Module in tools/benchmarks/ that defines each benchmark function."""


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=HOMES,
        default=[name for name in HOMES if name != "jobs"],
        metavar="NAME",
        help=f"run these benchmarks only (choices: {', '.join(HOMES)}; default: all but jobs, which takes 20 minutes)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="use fewer repetitions and smaller tasks, for a first look; intervals become wide",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write rows, hardware and versions as JSON")
    return parser.parse_args(words)


def run(name: str, quick: bool) -> Iterable[Row]:
    """Run the benchmark with this name and return its rows."""
    return pkgutil.resolve_name(f"tools.benchmarks.{HOMES[name]}:{name}")(quick)


def main(arguments: argparse.Namespace) -> int:
    """Run the benchmarks and print the table.

    Return 1 if a benchmark raised an error. A missed goal is no error.
    """
    from tools.benchmarks.measure import HEADER, about, table  # loads torch, which `--help` must not

    # Phase: measure
    head = about() | {"run": "quick: not for quoting" if arguments.quick else "full"}
    print(table(list(head.items())) + "\n")
    found: list[tuple[str, Row]] = []
    broken: dict[str, str] = {}
    for name in dict.fromkeys(arguments.only):
        started = time.perf_counter()
        try:
            found.extend((name, row) for row in run(name, arguments.quick))
        except Exception as error:
            traceback.print_exc()
            broken[name] = f"{type(error).__name__}: {error}"
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)

    # Phase: report
    rows = [row for _, row in found]
    print(table([HEADER, *(row.cells() for row in rows)]))
    print("\n" + "\n".join(f"{row.name}: {row.note}" for row in rows if row.note))
    print(f"\n{sum(row.verdict == 'met' for row in rows)} of {len(rows)} goals met")
    print("".join(f"BROKEN  {name}: {error}\n" for name, error in broken.items()), end="")
    if arguments.json is not None:
        measured = [{"benchmark": name, **asdict(row), "verdict": row.verdict} for name, row in found]
        result = json.dumps({**head, "rows": measured, "broken": broken}, indent=1, ensure_ascii=False)
        arguments.json.write_text(result + "\n", encoding="utf-8")
    return 1 if broken else 0


if __name__ == "__main__":
    try:
        sys.exit(main(parse()))
    except KeyboardInterrupt:
        sys.exit("interrupted")
