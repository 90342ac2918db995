"""Commands that prove, and that clear away what nothing needs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from harness.escape import for_terminal
from harness.lineage.proof import CHECKS, Findings, Note, verify
from tools.lineage_commands.place import Place, Where
from tools.lineage_commands.printing import print_json


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
    place: Where = Place()

    def run(self) -> None:
        if bool(self.run_id) == self.all:
            raise ValueError("give a RUN_ID or --all: `python tools/lineage.py list` shows what there is")
        findings = self.place.ask(
            lambda store: verify(store, self.run_id or None, data_directory=self.data_directory, progress=True)
        )
        if self.place.json:
            print_json("verify", [], **findings.to_dict())
        else:
            _print(findings)
        if findings.problems:
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
