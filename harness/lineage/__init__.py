"""Lineage of all results: records, local runs, and the MLflow runs that are filled from them.

Example:
    >>> from harness import lineage
    >>> store = lineage.open_store()
    >>> [run.kind for run in lineage.ancestors(store, run_id)]
    ['search', 'level', 'level']

Functions take a run ID or key, or a unique prefix of one. They return plain objects with `to_dict()`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.lineage.browse.difference import Difference, diff
    from harness.lineage.browse.export import to_networkx, write_export
    from harness.lineage.browse.find import (
        ancestors,
        descendants,
        family,
        find_node,
        newest,
        path_steps,
        relatives,
        way,
    )
    from harness.lineage.browse.query import Query, parse_density, parse_since
    from harness.lineage.bundle import import_bundle, read_bundle, write_bundle
    from harness.lineage.nodes.graph import LineageGraph, RunSummary
    from harness.lineage.nodes.record import LineageRecord
    from harness.lineage.proof import Findings, verify
    from harness.lineage.reload import load_checkpoint, load_signed_mask
    from harness.lineage.sharing.export import export_run
    from harness.lineage.sharing.hub import pull
    from harness.lineage.store import LineageStore, open_store

_HOMES = {
    "browse.find": ("ancestors", "descendants", "family", "find_node", "newest", "path_steps", "relatives", "way"),
    "bundle": ("import_bundle", "read_bundle", "write_bundle"),
    "browse.difference": ("Difference", "diff"),
    "browse.export": ("to_networkx", "write_export"),
    "nodes.graph": ("LineageGraph", "RunSummary"),
    "proof": ("Findings", "verify"),
    "browse.query": ("Query", "parse_density", "parse_since"),
    "nodes.record": ("LineageRecord",),
    "reload": ("load_checkpoint", "load_signed_mask"),
    "sharing.export": ("export_run",),
    "sharing.hub": ("pull",),
    "store": ("LineageStore", "open_store"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Difference",
    "Findings",
    "LineageGraph",
    "LineageRecord",
    "LineageStore",
    "RunSummary",
    "Query",
    "ancestors",
    "descendants",
    "diff",
    "export_run",
    "family",
    "find_node",
    "import_bundle",
    "load_checkpoint",
    "load_signed_mask",
    "newest",
    "open_store",
    "parse_density",
    "parse_since",
    "path_steps",
    "pull",
    "read_bundle",
    "relatives",
    "to_networkx",
    "verify",
    "way",
    "write_bundle",
    "write_export",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that listing runs does not import torch."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'harness.lineage' has no attribute {name!r}; public: {', '.join(__all__)}")
    import importlib

    return getattr(importlib.import_module(f"harness.lineage.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
