"""Commands that verify runs and delete files that are no longer needed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from harness.cli.lineage.printing import print_json
from harness.cli.lineage.store_options import StoreOptions, Where
from harness.common.logging import is_quiet
from harness.common.tables import print_fields, print_lines, print_table

if TYPE_CHECKING:
    from harness.lineage.proof import Findings

# Verification and garbage collection import torch. They are imported late, so that listing runs stays fast.


@dataclass(frozen=True)
class Verify:
    """Recompute all digests and check all recorded relations of runs.

    The exit code is 1 if a check fails. It is 3 if none fails, but some cannot be made here, such as those that need a
    network whose library is not installed. A run is verified with all its ancestors. A search is verified with all its
    levels and final trainings, too.
    """

    run_id: tyro.conf.Positional[str] = ""
    """Run ID, key, or a unique prefix of either. `list` shows them."""
    all: bool = False
    """Verify all runs."""
    data_directory: Path | None = None
    """Directory of prepared data sets. Default: as recorded with each run."""
    trust_code: bool = False
    """Execute Python files that define networks, also those that you have named in no command. Read RUN/network.py
    first."""
    place: Where = StoreOptions()

    def run(self) -> None:
        from harness.lineage.proof import verify

        if bool(self.run_id) == self.all:
            raise ValueError(f"give either a RUN or --all: `{self.place.open().list_command}` shows the runs")
        try:
            store, asked, bars = self.place.open(), self.run_id or None, not is_quiet()
            findings = verify(
                store, asked, data_directory=self.data_directory, trust_code=self.trust_code, progress=bars
            )
        except ConnectionError as error:  # no fallback to local runs: the result would be incomplete
            raise type(error)(f"{error}; --offline verifies only the local runs") from None
        if self.place.json:
            print_json("verify", [], **findings.to_dict())
        else:
            _print(findings)
        if findings.problems or findings.incomplete:
            sys.exit(1 if findings.problems else 3)


@dataclass(frozen=True)
class Gc:
    """List local files that can be deleted, with reasons. --delete deletes them.

    Records, signed masks, final trainings and the parents of other runs are kept. Copies in MLflow are kept, too.
    """

    keep_levels: Literal["all", "tickets"] | int = "all"
    """Checkpoints of levels to keep. all: every one. tickets: level 0, the deepest level, and levels that other runs
    use. N: tickets and every N-th level. A level without a checkpoint keeps its mask, but cannot be trained further."""
    older_than: float | None = None
    """Minimum age in days. Only older checkpoints are deleted, and also older states of unfinished runs. Such a run
    starts over."""
    delete: bool = False
    """Delete the listed files."""
    place: Where = StoreOptions()

    def run(self) -> None:
        # Phase: find, and delete if asked
        from harness.runs.garbage import Policy, delete_garbage, find_garbage

        policy = Policy(self.keep_levels, self.older_than)
        items = find_garbage(self.place.open(), policy)
        stays: dict[Path, str] = {}
        if self.delete:
            stays = {item.path: why for item, why in delete_garbage(items, policy) if why is not None}

        # Phase: report
        total = sum(item.num_bytes for item in items if item.path not in stays)
        if self.place.json:
            listed = [
                {"path": str(item.path), "name": item.name, "num_bytes": item.num_bytes, "why": item.why}
                | {"stays_because": stays.get(item.path)}
                for item in items
            ]
            print_json("gc", [], policy=str(policy), deleted=self.delete, num_bytes=total, items=listed)
        else:
            rows = [
                {"bytes": f"{item.num_bytes:,}", "path": str(item.path), "run": item.name, "why": item.why}
                | ({"stays because": stays.get(item.path, "")} if stays else {})
                for item in items
            ]
            if rows:
                print_table(rows, numbers=("bytes",), whole=("path",), spare=("run",))
            done = "deleted" if self.delete else "can be deleted; --delete does it" if items else "can be deleted"
            print_lines(f"{total:,} bytes  {done} ({policy})")
        if stays:
            sys.exit(1)


def _print(findings: Findings) -> None:
    """Print problems with advice, then notes, then counts of all checks."""
    from harness.lineage.proof import CHECKS

    for problem in findings.problems:
        where = f"run {problem.run_id}" if problem.run_id else f"key {problem.key[:16] or '–'}"
        print_lines(f"PROBLEM  {problem.name}  ({where})", style="bold red")
        print_lines(f"  {problem.check}: {problem.what}", f"  → {problem.advice}")
    # Print equal notes about several runs only once.
    names: dict[str, list[str]] = {}
    for note in findings.notes:
        names.setdefault(note.what, []).append(note.name)
    for text, runs in names.items():
        print_lines(f"note  {', '.join(runs[:3])}{_more(runs)}: {text}")
    made = sum(findings.checked.values())
    checks = [(f"{findings.checked[name]:6}  {name}", check.proves) for name, check in CHECKS.items()]
    title = f"{findings.num_nodes} runs, {findings.num_bytes / 1e6:,.1f} MB hashed, {made} checks made:"
    print_fields(checks, title=title)
    number = len(findings.problems)
    rest = "; some checks cannot be made here: see the notes" if findings.incomplete else ""
    print_lines((f"{number} problem{'s' if number > 1 else ''} found" if number else "no problem found") + rest)


def _more(names: Sequence[str], shown: int = 3) -> str:
    """Return " and N more" if there are more names than shown."""
    return f" and {len(names) - shown} more" if len(names) > shown else ""
