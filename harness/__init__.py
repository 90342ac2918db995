"""Harness for lottery-ticket research with signs: find a winning sign, keep its lineage, use it anywhere.

The public names are those of `__all__`; docs/python.md shows each of them at work. Importing this package is light:
torch, MLflow, FFCV and Accelerate load where they are used.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness import lineage
    from harness.cli.launch import launch
    from harness.experiment.comparison import compare
    from harness.experiment.final import Trial, final_training
    from harness.experiment.search import search
    from harness.lineage.reload import load_checkpoint, load_network, load_signed_mask
    from harness.masks import Mask, SignedMask

if "LOCAL_RANK" in os.environ:
    # DDP warns on every rank of a setting that is meant (see harness.distributed.world); read when torch is loaded
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from harness.distributed import launcher_watch as _launchers  # noqa: F401  # looks around before torch is loaded

__version__ = "0.2.0"
__all__ = [
    "Mask",
    "SignedMask",
    "Trial",
    "compare",
    "final_training",
    "launch",
    "lineage",
    "load_checkpoint",
    "load_network",
    "load_signed_mask",
    "search",
]

_HOMES = {
    "Mask": "harness.masks",
    "SignedMask": "harness.masks",
    "Trial": "harness.experiment.final",
    "compare": "harness.experiment.comparison",
    "final_training": "harness.experiment.final",
    "launch": "harness.cli.launch",
    "load_checkpoint": "harness.lineage.reload",
    "load_network": "harness.lineage.reload",
    "load_signed_mask": "harness.lineage.reload",
    "search": "harness.experiment.search",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its home on first use, so that `import harness` costs nothing."""
    import importlib

    if name == "lineage":
        return importlib.import_module("harness.lineage")
    if name not in _HOMES:
        raise AttributeError(f"module 'harness' has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)
