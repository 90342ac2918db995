"""Test printed tables: complete plain rows in a pipe, and lines that fit on a terminal."""

from __future__ import annotations

import contextlib
import io
import re
import sys

import pytest

from harness.common.tables import print_fields, print_lines, print_markdown, print_table, tree_texts

ID = "0123456789abcdef" * 4
ROWS = [
    {"name": "a name of several words", "number": "1.50", "run": ID[:32], "why": "because " * 12 + "of this"},
    {"name": "[bold]no markup[/bold] :smile:", "number": "10", "run": ID, "why": "\x1b[31mred\nand more"},
]
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


class Terminal(io.StringIO):
    """A text buffer that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def print_rows() -> None:
    print_table(ROWS, numbers=("number",), whole=("run",), spare=("name",), marked=0)


def test_a_pipe_gets_one_complete_row_per_line(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    print_rows()
    out = capsys.readouterr().out
    assert "\x1b" not in out
    head, first, second = out.splitlines()
    assert head.split() == ["name", "number", "run", "why"]
    assert first.split() == " ".join(ROWS[0].values()).split()
    assert second.startswith("[bold]no markup[/bold] :smile:  ") and second.endswith(
        f"10  {ID}  \\x1b[31mred\\nand more"
    )
    assert first.index("1.50") + 4 == second.index("10  ") + 2 == head.index("number") + 6, "numbers are right-aligned"


@pytest.mark.parametrize("width", [80, 120, 200])
def test_a_terminal_gets_lines_that_fit_and_complete_ids(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with contextlib.redirect_stdout(Terminal()) as terminal:
        print_rows()
    shown = terminal.getvalue()
    assert "\x1b[1m" in shown, "the heading must be bold"
    plain = ESCAPE.sub("", shown)
    assert all(len(line) <= max(width, len("number") + len(ID) + 20) for line in plain.splitlines()), plain
    assert ID in plain and "\x1b" not in plain
    left_out = "(columns hidden on this narrow terminal: name)" in plain
    assert left_out != ("no markup" in plain), "an omitted column must be named"
    assert width != 80 or left_out


def test_tables_are_complete_without_rich(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    for name in ("rich", "rich.console"):
        monkeypatch.setitem(sys.modules, name, None)
    print_rows()
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "number", "run", "why"] and lines[0].split() == " ".join(ROWS[0].values()).split()
    assert len(lines) == 2 and ID in lines[1] and "\x1b" not in lines[1]


def test_fields_lines_and_trees_are_plain_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields([("key", ID * 4), ("longer", "[b]x[/b]")], title="tags")
    print_lines("x" * 300, style="bold red")
    print_markdown("| a |\n| --- |")
    out = capsys.readouterr().out
    assert out == f"tags\n  key     {ID * 4}\n  longer  [b]x[/b]\n{'x' * 300}\n| a |\n| --- |\n"
    assert tree_texts([(0, "a"), (1, "b"), (2, "c"), (1, "d"), (0, "e")]) == [
        "a",
        "├── b",
        "│   └── c",
        "└── d",
        "e",
    ]
