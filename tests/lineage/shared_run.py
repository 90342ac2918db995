"""A small search with invented weights, whose levels are exported, delivered and loaded."""

from __future__ import annotations

from pathlib import Path

import torch

from harness import SignPruner
from harness.lineage.nodes.local_files import LocalNodes
from harness.lineage.store import LineageStore
from tests.lineage.proof.made import ARCHITECTURE, FOREIGN
from tests.made_search import Draft, MadeSearch, small_config

MEAN, STD = [0.3053], [0.3762]


def _with_statistics(draft: Draft) -> None:
    draft.determinants["spec"] |= {"mean": MEAN, "std": STD}


def made_search(runs: Path, levels: int = 1, finals: tuple[str, ...] = ()) -> MadeSearch:
    """Commit a search of a ResNet-8 of width 2 on 8 × 8 images, and final trainings of its ticket."""
    config = small_config(Path("data"), levels)
    changes = {f"L{level:02d}": _with_statistics for level in range(levels + 1)}
    return MadeSearch(LocalNodes(runs), config, ARCHITECTURE, FOREIGN, changes).make(finals)


def local_store(runs: Path) -> LineageStore:
    """Return a store without a tracking server."""
    return LineageStore(None, LocalNodes(runs))


def own_loop_network() -> torch.nn.Module:
    """Return a network that no record describes. It takes vectors of four numbers."""
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))


def own_loop_level(runs: Path) -> tuple[str, torch.nn.Module]:
    """Commit a level of a user's own loop, and return its key and network."""
    torch.manual_seed(0)
    network = own_loop_network()
    pruner = SignPruner(network, method="lrr", classifier="2", seed=1)
    for _ in pruner.levels(densities=[0.5]):
        optimizer = pruner.attach(torch.optim.SGD(network.parameters(), 0.1))
        with pruner.step():
            network(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        key = pruner.log(name="mine", runs=runs)
    return key, network
