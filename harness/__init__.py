"""Find winning signs of sparse networks, record their lineage, and reuse them.

`__all__` lists the public names, and docs/python.md shows an example of each. Importing this package is fast, because
torch, MLflow, FFCV and Accelerate are imported on first use.
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
    from harness.pruner import SignPruner

if "LOCAL_RANK" in os.environ:
    # Hide DDP's warning, on every rank, about an intended setting (see harness.distributed.world). torch reads this
    # variable on import.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from harness.distributed import launcher_watch as _launchers  # noqa: F401  # must run before torch is imported

__version__ = "0.2.0"
__all__ = [
    "Mask",
    "SignPruner",
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
    "SignPruner": "harness.pruner",
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
    """Import a public name on first use, to keep `import harness` fast."""
    import importlib

    if name == "lineage":
        return importlib.import_module("harness.lineage")
    if name not in _HOMES:
        raise AttributeError(f"module 'harness' has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Return all names, also those that are not imported yet, for completion."""
    return sorted({*globals(), *__all__})
