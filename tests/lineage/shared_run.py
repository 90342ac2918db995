"""A small search with invented weights, whose levels are exported, delivered and loaded."""

from __future__ import annotations

from pathlib import Path

from harness.config import DataConfig, ModelConfig, OptimConfig, Schedule, SearchConfig
from harness.lineage.nodes.local_files import LocalNodes
from harness.lineage.store import LineageStore
from tests.lineage.proof.made import ARCHITECTURE, FOREIGN
from tests.made_search import Draft, MadeSearch

MEAN, STD = [0.3053], [0.3762]


def _with_statistics(draft: Draft) -> None:
    draft.determinants["spec"] |= {"mean": MEAN, "std": STD}


def made_search(runs: Path, levels: int = 1, finals: tuple[str, ...] = ()) -> MadeSearch:
    """Commit a search of a ResNet-8 of width 2 on 8 × 8 images, and final trainings of its ticket."""
    config = SearchConfig(
        data=DataConfig("digits", directory=Path("data")),
        model=ModelConfig("resnet8", width=2),
        optim=OptimConfig(),
        final=Schedule(2, "step"),
        warmup_epochs=1,
        level_epochs=1,
        num_levels=levels,
        global_batch_size=64,
    )
    changes = {f"L{level:02d}": _with_statistics for level in range(levels + 1)}
    return MadeSearch(LocalNodes(runs), config, ARCHITECTURE, FOREIGN, changes).make(finals)


def local_store(runs: Path) -> LineageStore:
    """Return a store without a tracking server."""
    return LineageStore(None, LocalNodes(runs))
