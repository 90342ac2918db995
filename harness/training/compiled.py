"""Compile networks with torch.compile, and count the compiled graphs.

Compiling in place keeps the names of parameters. A graph depends on the shape of its batch, training or evaluation
mode, precision, and the parameters that are trained. α, masks and parameters change in place, and dropout is seeded
outside, so they never compile a graph again. BatchNorm re-estimation calls `forward` and so runs uncompiled: it sets
`momentum`, a Python number, for each batch.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import nn

from harness.common.launched import launcher_number
from harness.common.logging import Progress
from harness.config import CompileMode

MOST_GRAPHS = 64
"""Graphs of one launch. More of them are an error. torch would run all others uncompiled, and bits could differ."""


def compile_(model: nn.Module, mode: CompileMode, backend: str = "inductor") -> None:
    """Compile a network in place. Each shape of a batch gets its own graph when it first occurs.

    Args:
        model: The network, on its device.
        mode: Mode of torch.compile. "no" does nothing.
        backend: Another backend of torch.compile, which has no modes. "eager" traces the network only.
    """
    if mode == "no":
        return
    from torch._dynamo import config as dynamo

    dynamo.recompile_limit, dynamo.fail_on_recompile_limit_hit = MOST_GRAPHS, True
    # With dynamic shapes, the graph of a batch would depend on the batches before it, and so would its bits.
    model.compile(backend=backend, mode=mode if backend == "inductor" else None, dynamic=False)


@cache
def require_compiler(device: torch.device) -> None:
    """Compile one tiny function, to find missing compilers before the first step.

    Raises:
        ValueError: torch.compile does not work on this device. The message names the fix.
    """
    from torch._dynamo.utils import counters
    from torch._inductor import config as inductor
    from torch._inductor.cpp_builder import get_cpp_compiler

    graphs = dict(counters["stats"])
    # Processes of one node share its cores.
    if "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ:
        inductor.compile_threads = max(1, (inductor.compile_threads or 1) // launcher_number("LOCAL_WORLD_SIZE", 1))
    try:
        if device.type == "cpu":
            get_cpp_compiler()  # the function below may come from inductor's cache on disk
        torch.compile(torch.neg, dynamic=False)(torch.ones(2, device=device))
    except Exception as error:
        text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(
            "--compile needs a C++ compiler and Python's headers (apt-get install g++ python3-dev; CXX names another "
            f"compiler), and Triton on a GPU; or choose --compile no ({text:.200})"
        ) from error
    counters["stats"].clear()  # count graphs of networks only
    counters["stats"].update(graphs)


def num_graphs() -> int:
    """Return the number of graphs that this process has compiled."""
    utils = sys.modules.get("torch._dynamo.utils")
    return int(utils.counters["stats"]["unique_graphs"]) if utils else 0


@dataclass
class CompilingProgress:
    """Count the steps of a compiled network on a progress bar. The rate excludes steps that compiled."""

    bar: Progress
    graphs: int = field(default_factory=num_graphs)
    since: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        if self.graphs == 0:
            self.bar.set_postfix_str("compiling")

    def update(self, steps: int) -> None:
        """Count `steps` more steps. Show the seconds of a step that compiled."""
        now, graphs = time.perf_counter(), num_graphs()
        if graphs != self.graphs:
            self.bar.set_postfix_str(f"compiling: {now - self.since:.0f} s")
            self.bar.unpause()
        self.graphs, self.since = graphs, now
        self.bar.update(steps)
