"""Compare several pages of one figure in one table, with one column for each page.

    python tools/side_by_side.py results/claims-*
    python tools/side_by_side.py results/claims-digits-resnet20* --out results/weight_decay.md

The pages come from recipes/reproduce.py with different settings, networks or data. The table shows accuracy,
differences and barriers at the lowest density that all pages have. A pipe or a file receives Markdown.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from harness.cli.errors import clear_errors
from harness.cli.options import parse
from harness.common.program import command
from harness.common.tables import print_markdown


@dataclass(frozen=True)
class Pages:
    """Options of the comparison."""

    pages: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Directories written by recipes/reproduce.py or tools/report.py."""
    out: Path | None = None
    """File for a copy of the table."""


if __name__ == "__main__":
    with clear_errors():
        asked = parse(Pages, __doc__)
        # Imported after the options are read: these load torch, and `--help` must not.
        from harness.reproduction.page import EXPLORATORY, markdown
        from harness.reproduction.report import NUMBERS
        from harness.reproduction.side_by_side import read_numbers, side_by_side

        if bare := [str(page) for page in asked.pages if not (page / NUMBERS).is_file()]:
            raise FileNotFoundError(
                f"no {NUMBERS} in {', '.join(bare)}; give directories of pages, which "
                f"`{command('reproduce FIGURE')}` and `{command('report FIGURE')}` write to results/"
            )
        names = [page.resolve().name for page in asked.pages]
        shared = len(os.path.commonprefix(names).rpartition("-")[0]) if len(names) > 1 else 0  # whole words
        columns = [name[shared:].strip("-") or name for name in names]
        pages = [read_numbers(page / NUMBERS) for page in asked.pages]
        table = f"{EXPLORATORY}\n\n{markdown(*side_by_side(dict(zip(columns, pages, strict=True))))}"
        print_markdown(table)
        if asked.out is not None:
            asked.out.write_text(table + "\n", encoding="utf-8")
