"""List the places where the proofs make a finding, and record which of them find a fault.

A place is one call that makes a `Finding`, or one row of the tables that `records.settings` compares. Its name is
module, function and check, with a number from the second on: "copies.check_local files #2".
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import harness.lineage.proof
from harness.lineage.proof import findings, records

ROOT = Path(harness.lineage.proof.__file__).parent
FIXED = {"_same_owner": "owner", "_start_claim": "start", "contradiction": "settings"}
"""Makers of one check only, and this check."""
MAKERS = ("Finding", "_same", "_claim_drawn", *FIXED)
"""Functions that make a finding for their caller. The caller is the place."""
TABLES = ("_determined", "_determined_level", "_schedule")
"""Generators of the rows (name, one value, the other value) that `records.settings` compares."""


def _places(module: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and name of every place of a module, in the order of lines."""
    counts: Counter[str] = Counter()
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef) or function.name in MAKERS:
            continue
        found: list[tuple[int, str]] = []
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and (check := _check_of(node)):
                found.append((node.lineno, f"{module}.{function.name} {check}"))
            if module == "records" and function.name in TABLES and isinstance(node, ast.Yield):
                assert isinstance(node.value, ast.Tuple)
                found.append((node.lineno, f"{module}.{function.name} row {_text(node.value.elts[0])}"))
        for line, name in sorted(found):
            counts[name] += 1
            yield line, name if counts[name] == 1 else f"{name} #{counts[name]}"


def _check_of(call: ast.Call) -> str | None:
    """Return the check of a call that makes a finding, None for other calls."""
    name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
    if name not in MAKERS:
        return None
    if name in FIXED:
        return FIXED[name]
    if any(isinstance(argument, ast.Constant) and argument.value is True for argument in call.args):
        return None  # only counts: it never reports a fault
    # the check is the first text among the arguments: `_claim_drawn` has node and record before it
    texts = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
    return str(texts[0]) if texts else "of the method"


def _text(node: ast.expr) -> str:
    return ast.unparse(node).strip("f'\"")


def all_places() -> dict[tuple[str, int], str]:
    """Return the name of every place by (file, line)."""
    named = {}
    for path in sorted(ROOT.glob("*.py")):
        for line, name in _places(path.stem, ast.parse(path.read_text())):
            assert (str(path), line) not in named, f"{path}:{line} makes two findings; put them on two lines"
            named[str(path), line] = name
    return named


def record_places(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return a set that receives the name of every place that finds a fault from now on."""
    # Phase: the calls that make a finding
    named, failed = all_places(), set[str]()

    def noted(finding: findings.Finding, check: str, holds: bool, what: str) -> None:
        make(finding, check, holds, what)
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code.co_name in MAKERS:
            frame = frame.f_back
        assert frame is not None
        place = frame.f_code.co_filename, frame.f_lineno
        if not holds and place in named:
            failed.add(named[place])

    # Phase: the rows of the compared tables
    def watched(*args: Any) -> Iterator[tuple[str, Any, Any]]:
        rows = determined(*args)
        for row in rows:
            if row[1] != row[2]:
                inner: Any = rows
                while inner.gi_yieldfrom is not None:
                    inner = inner.gi_yieldfrom
                failed.add(named[inner.gi_code.co_filename, inner.gi_frame.f_lineno])
            yield row

    make, determined = findings.Finding.__init__, records._determined
    monkeypatch.setattr(findings.Finding, "__init__", noted)
    monkeypatch.setattr(records, "_determined", watched)
    return failed
