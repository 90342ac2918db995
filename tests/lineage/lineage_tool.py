"""Locate tools/lineage.py and run its commands in this process."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from harness.lineage.store import LineageStore

TOOL = Path(__file__).parents[2] / "tools" / "lineage.py"


def ask(tool: ModuleType, store: LineageStore, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    place = ["--runs", str(store.local.directory), "--tracking-uri", str(store.tracking_uri)]
    monkeypatch.setattr(sys, "argv", ["lineage.py", *arguments, *place])
    tool.main()
