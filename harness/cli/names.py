"""Names that options accept, read without importing the registries: `--help` must not load torch."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

_HARNESS = Path(__file__).resolve().parents[1]


@cache
def registered(file: str, table: str) -> tuple[str, ...]:
    """Return the keys of a registry.

    Args:
        file: Source file below `harness/`.
        table: Name of a dict literal in it, whose keys are string literals.

    Raises:
        LookupError: The file has no such dict literal.
    """
    for node in ast.parse((_HARNESS / file).read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.value, ast.Dict):
            continue
        if isinstance(node.target, ast.Name) and node.target.id == table:
            return tuple(ast.literal_eval(key) for key in node.value.keys if key is not None)
    raise LookupError(f"harness/{file} has no dict literal {table}")


def methods() -> tuple[str, ...]:
    """Return the names of the pruning methods."""
    return registered("pruning/__init__.py", "METHODS")


def networks() -> tuple[str, ...]:
    """Return the names of the networks."""
    return registered("models/__init__.py", "MODELS")


def datasets() -> tuple[str, ...]:
    """Return the names of the data sets."""
    from harness.data.spec import DATASETS

    return tuple(DATASETS)
