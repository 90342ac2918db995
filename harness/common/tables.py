"""Print tables and trees with rich.

A terminal gets colours and a layout that fits its width. A pipe gets plain text with one row per line, neither
truncated nor wrapped. Control characters are escaped, because names and tags may come from another user's store.
"""

from __future__ import annotations

import io
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from harness.common.escape import for_terminal

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

# rich is imported inside functions, because training processes do not need it.

_NEVER_WRAPS = 1 << 20
"""Width, in columns, of an output that is not a terminal."""


def print_table(
    rows: Sequence[Mapping[str, str]],
    *,
    numbers: Collection[str] = (),
    whole: Collection[str] = (),
    spare: Sequence[str] = (),
    marked: int | None = None,
) -> None:
    """Print rows as a table. The first row's keys are the column names.

    Args:
        rows: Cell texts by column name.
        numbers: Columns that are right-aligned and never wrapped.
        whole: Columns that are never wrapped, such as IDs, so that they can be copied.
        spare: Columns to drop on a terminal that is too narrow, in this order.
        marked: Index of the row that a terminal shows in bold.
    """
    if not sys.stdout.isatty():
        print(_plain_table(rows, numbers))
        return
    try:
        console = _console()
    except ImportError:  # rich is optional: a search runs without it
        print("\n".join("  ".join(map(for_terminal, cells)) for cells in (rows[0], *(row.values() for row in rows))))
        return
    names = list(rows[0])
    # Drop spare columns until the table fits the terminal.
    left_out: list[str] = []
    table = _table(names, rows, numbers, whole, marked)
    for name in spare:
        if _widest(console, table) <= console.width:
            break
        names.remove(name)
        left_out.append(name)
        table = _table(names, rows, numbers, whole, marked)
    _print(console, table)
    # Name the dropped columns.
    if left_out:
        print_lines(f"(columns hidden on this narrow terminal: {', '.join(left_out)})")


@contextmanager
def live_table(*, numbers: Collection[str] = ()) -> Iterator[Callable[[Sequence[Mapping[str, str]]], None]]:
    """Show a table at the bottom of the terminal on standard error, below all messages.

    Args:
        numbers: Columns that are right-aligned and never wrapped.

    Yields:
        A function that replaces the rows, as in `print_table`.
    """
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        yield lambda rows: live.update(_table(list(rows[0]), rows, numbers, (), None), refresh=True)


def print_fields(rows: Iterable[tuple[str, ...]], *, title: str = "") -> None:
    """Print names and values in aligned columns, indented below `title` if given."""
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
    """Print lines of text.

    Args:
        lines: Texts. A terminal wraps lines that are too long.
        style: A style of rich, used on a terminal.
    """
    if not sys.stdout.isatty():
        print(*(for_terminal(line).rstrip() for line in lines), sep="\n")
        return
    from rich.text import Text

    console = _console()
    for line in lines:
        _print(console, Text(for_terminal(line), style, no_wrap=True, overflow="ignore"))


def print_markdown(text: str) -> None:
    """Print Markdown: formatted on a terminal, unchanged to a pipe."""
    if not sys.stdout.isatty():
        print(text)
        return
    from rich.markdown import Markdown

    _print(_console(), Markdown(text))


def tree_texts(names: Iterable[tuple[int, str]]) -> list[str]:
    """Return each name with the tree branches drawn before it.

    Args:
        names: (depth, name) pairs in depth-first order: children follow their parent.
    """
    from rich.tree import Tree

    root = Tree("", hide_root=True)
    above = [root]
    for depth, name in names:
        del above[depth + 1 :]
        above.append(above[-1].add(_text(name, no_wrap=True)))
    console = _console(width=_NEVER_WRAPS)
    return ["".join(segment.text for segment in line) for line in console.render_lines(root, pad=False)]


def _plain_table(rows: Sequence[Mapping[str, str]], numbers: Collection[str]) -> str:
    """Return the table that a pipe gets. It is that of rich without colours, in a fraction of the time."""
    names = list(rows[0])
    lines = [names, *([row[name] for name in names] for row in rows)]
    cells = [[for_terminal(cell) for cell in line] for line in lines]
    widths = [max(map(_columns_of, column)) for column in zip(*cells, strict=True)]

    def padded(name: str, cell: str, width: int) -> str:
        room = " " * (width - _columns_of(cell))
        return room + cell if name in numbers else cell + room

    filled = ([*map(padded, names, line, widths)] for line in cells)
    return "\n".join("  ".join(line).rstrip() for line in filled)


def _columns_of(text: str) -> int:
    """Return the number of columns that a terminal needs for a text. East Asian characters take two."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


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
    """Return text that rich prints literally, without its markup."""
    from rich.text import Text

    return Text(for_terminal(text), no_wrap=no_wrap)


def _console(width: int | None = None) -> Console:
    """Return a console that writes to a buffer.

    It uses the width and colours of standard output, if that is a terminal.
    """
    from rich.console import Console

    is_terminal = sys.stdout.isatty()
    if not is_terminal:
        width = _NEVER_WRAPS
    return Console(
        file=io.StringIO(), force_terminal=is_terminal, force_jupyter=False, width=width, emoji=False, highlight=False
    )


def _widest(console: Console, table: Table) -> int:
    """Return the width, in columns, at which no cell wraps."""
    return console.measure(table, options=console.options.update(width=_NEVER_WRAPS)).maximum


def _print(console: Console, part: RenderableType) -> None:
    """Render `part` and print it with Python's `print`.

    A closed pipe then ends the command in the same way as elsewhere.
    """
    assert isinstance(console.file, io.StringIO)
    least = console.measure(part, options=console.options.update(width=_NEVER_WRAPS)).minimum
    # Render wider than a narrow terminal if necessary: the terminal then wraps the line, and rich breaks no ID.
    console.print(part, width=max(console.width, least), crop=False)
    text = console.file.getvalue()
    console.file.seek(0)
    console.file.truncate()
    print("\n".join(line.rstrip() for line in text.removesuffix("\n").split("\n")))
