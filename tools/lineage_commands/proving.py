"""Commands that prove, and that clear away what nothing needs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from harness.common.escape import for_terminal
from harness.lineage.proof import CHECKS, Findings, Note, verify
from harness.runs.garbage import Policy, delete_garbage, find_garbage
from tools.lineage_commands.printing import print_json
from tools.lineage_commands.store_options import StoreOptions, Where


@dataclass(frozen=True)
class Verify:
    """Recompute every digest and check every claim of the lineage; exit code 1 if anything does not hold.

    A run is verified with all it came from, a search with all that is below it too.
    """

    run_id: tyro.conf.Positional[str] = ""
    """Run ID or node key, or a unique beginning of one."""
    all: bool = False
    """Verify everything there is."""
    data_directory: Path | None = None
    """Where the prepared data are; default: where the runs found them."""
    place: Where = StoreOptions()

    def run(self) -> None:
        if bool(self.run_id) == self.all:
            raise ValueError("give a RUN_ID or --all: `python tools/lineage.py list` shows what there is")
        try:
            findings = verify(self.place.open(), self.run_id or None, data_directory=self.data_directory, progress=True)
        except ConnectionError as error:  # local nodes alone would be half a proof
            raise type(error)(f"{error}; --offline verifies the local nodes alone") from None
        if self.place.json:
            print_json("verify", [], **findings.to_dict())
        else:
            _print(findings)
        if findings.problems:
            sys.exit(1)


@dataclass(frozen=True)
class Gc:
    """Say what can be deleted from the directory of runs, and why; --delete does it.

    Records, signed masks, final trainings, and what anything was made from stay. MLflow's copies are left alone.
    """

    keep_levels: Literal["all", "tickets"] | int = "all"
    """Checkpoints of levels to keep: all; tickets: level 0, the deepest, and those that something was made from or
    compared; N: every N-th as well. A level without its checkpoint keeps its mask, and cannot be trained from."""
    older_than: float | None = None
    """Only checkpoints older than so many days, and also states of unfinished runs that old; they would begin anew."""
    delete: bool = False
    """Delete what is listed."""
    place: Where = StoreOptions()

    def run(self) -> None:
        policy = Policy(self.keep_levels, self.older_than)
        items = find_garbage(self.place.open(), policy)
        stays: dict[Path, str] = {}
        if self.delete:
            stays = {item.path: why for item, why in delete_garbage(items, policy) if why is not None}
        total = sum(item.num_bytes for item in items if item.path not in stays)
        if self.place.json:
            listed = [
                {"path": str(item.path), "name": item.name, "num_bytes": item.num_bytes, "why": item.why}
                | {"stays_because": stays.get(item.path)}
                for item in items
            ]
            print_json("gc", [], policy=str(policy), deleted=self.delete, num_bytes=total, items=listed)
        else:
            for item in items:
                line = f"{item.num_bytes:>15,} bytes  {item.path}  ({item.name}): {item.why}"
                print(for_terminal(line))
                if item.path in stays:
                    print(for_terminal(f"{'':>15}        stays: {stays[item.path]}"))
            done = "deleted" if self.delete else "can be deleted; --delete does it" if items else "can be deleted"
            print(f"{total:>15,} bytes  {done} ({policy})")
        if stays:
            sys.exit(1)


def _by_text(notes: Sequence[Note]) -> dict[str, list[str]]:
    """Return {text: names of the runs it was noted for}."""
    found: dict[str, list[str]] = {}
    for note in notes:
        found.setdefault(note.what, []).append(note.name)
    return found


def _more(names: Sequence[str], shown: int = 3) -> str:
    return f" and {len(names) - shown} more" if len(names) > shown else ""


def _print(findings: Findings) -> None:
    lines = []
    for problem in findings.problems:
        where = f"run {problem.run_id}" if problem.run_id else f"key {problem.key[:16] or '–'}"
        lines += [f"PROBLEM  {problem.name}  ({where})", f"  {problem.check}: {problem.what}", f"  → {problem.advice}"]
    lines += [f"note  {', '.join(names[:3])}{_more(names)}: {what}" for what, names in _by_text(findings.notes).items()]
    made = sum(findings.checked.values())
    lines.append(f"{findings.num_nodes} runs, {findings.num_bytes / 1e6:,.1f} MB hashed, {made} checks made:")
    lines += [f"  {findings.checked[name]:6}  {name:11} {check.proves}" for name, check in CHECKS.items()]
    number = len(findings.problems)
    lines.append(f"{number} problem{'s' if number > 1 else ''} found" if number else "no problem found")
    print("\n".join(for_terminal(line) for line in lines))
