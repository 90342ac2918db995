"""Tables and trees of the terminal, drawn by rich.

A terminal gets colours and lines that fit it. A pipe gets plain text: one row a line, nothing cut, nothing wrapped.
Names and tags may come from somebody else's store, so control characters are written out.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from harness.common.escape import for_terminal

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

# rich is imported where it is used: a training process never needs it.

_NEVER_WRAPS = 1 << 20
"""Columns of an output that is no terminal."""


def print_table(
    rows: Sequence[Mapping[str, str]],
    *,
    numbers: Collection[str] = (),
    whole: Collection[str] = (),
    spare: Sequence[str] = (),
    marked: int | None = None,
) -> None:
    """Print rows under the names of their columns, which are those of the first row.

    Args:
        rows: Texts by the name of their column.
        numbers: Columns that are set to the right and never wrapped.
        whole: Columns that are never wrapped, such as IDs, which are copied.
        spare: Columns that a terminal too narrow for all does without, the first of them first.
        marked: Number of the row that a terminal shows in bold.
    """
    try:
        console = _console()
    except ImportError:  # a search needs no more than PyTorch, safetensors, tqdm and tyro
        print("\n".join("  ".join(map(for_terminal, cells)) for cells in (rows[0], *(row.values() for row in rows))))
        return
    names = list(rows[0])
    left_out: list[str] = []
    table = _table(names, rows, numbers, whole, marked)
    for name in spare:
        if _widest(console, table) <= console.width:
            break
        names.remove(name)
        left_out.append(name)
        table = _table(names, rows, numbers, whole, marked)
    _print(console, table)
    if left_out:
        print_lines(f"(a wider terminal, or a pipe, shows also: {', '.join(left_out)})")


def print_fields(rows: Iterable[tuple[str, ...]], *, title: str = "") -> None:
    """Print names and their values in columns without a head, indented below `title` if it is given."""
    from rich.padding import Padding
    from rich.table import Table

    grid = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column(no_wrap=True, style="cyan")
    for row in rows:
        grid.add_row(*map(_text, row))
    for column in grid.columns[1:]:
        column.overflow = "fold"
    if title:
        print_lines(title, style="bold")
    if grid.row_count:
        _print(_console(), Padding(grid, (0, 0, 0, 2)) if title else grid)


def print_lines(*lines: str, style: str = "") -> None:
    """Print lines of text, in the style of rich on a terminal; a terminal wraps what is too long."""
    from rich.text import Text

    console = _console()
    for line in lines:
        _print(console, Text(for_terminal(line), style, no_wrap=True, overflow="ignore"))


def print_markdown(text: str) -> None:
    """Print Markdown: laid out on a terminal, as it stands into a pipe."""
    if not sys.stdout.isatty():
        print(text)
        return
    from rich.markdown import Markdown

    _print(_console(), Markdown(text))


def tree_texts(names: Iterable[tuple[int, str]]) -> list[str]:
    """Return each name with the branches that lead to it, from (depth, name) where children follow their parent."""
    from rich.tree import Tree

    root = Tree("", hide_root=True)
    above = [root]
    for depth, name in names:
        del above[depth + 1 :]
        above.append(above[-1].add(_text(name, no_wrap=True)))
    console = _console(width=_NEVER_WRAPS)
    return ["".join(segment.text for segment in line) for line in console.render_lines(root, pad=False)]


def _table(
    names: Sequence[str],
    rows: Sequence[Mapping[str, str]],
    numbers: Collection[str],
    whole: Collection[str],
    marked: int | None,
) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in names:
        unbroken = name in numbers or name in whole
        least = max(len(row[name]) for row in rows) if unbroken else None
        table.add_column(
            _text(name),
            justify="right" if name in numbers else "left",
            no_wrap=unbroken,
            min_width=least,
            overflow="fold",
        )
    for number, row in enumerate(rows):
        table.add_row(*(_text(row[name]) for name in names), style="bold green" if number == marked else None)
    return table


def _text(text: str, *, no_wrap: bool | None = None) -> Text:
    """Return text that rich takes as it is, not as its markup."""
    from rich.text import Text

    return Text(for_terminal(text), no_wrap=no_wrap)


def _console(width: int | None = None) -> Console:
    """Return a console that writes to a buffer and knows whether standard output is a terminal, and how wide."""
    from rich.console import Console

    is_terminal = sys.stdout.isatty()
    if not is_terminal:
        width = _NEVER_WRAPS
    return Console(
        file=io.StringIO(), force_terminal=is_terminal, force_jupyter=False, width=width, emoji=False, highlight=False
    )


def _widest(console: Console, table: Table) -> int:
    """Return the columns of a terminal on which no cell is wrapped."""
    return console.measure(table, options=console.options.update(width=_NEVER_WRAPS)).maximum


def _print(console: Console, part: RenderableType) -> None:
    """Print through `print`, so that a reader that has gone ends the command as it does everywhere."""
    assert isinstance(console.file, io.StringIO)
    least = console.measure(
        part, options=console.options.update(width=_NEVER_WRAPS)
    ).minimum  # IDs stay whole on any terminal: it wraps the line itself
    console.print(part, width=max(console.width, least), crop=False)  # IDs stay whole where they do not fit
    text = console.file.getvalue()
    console.file.seek(0)
    console.file.truncate()
    print("\n".join(line.rstrip() for line in text.removesuffix("\n").split("\n")))
