"""Seconds to verify a whole search of ResNet-50 with ten levels on local storage, and the memory it takes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from harness.config import DataConfig, ModelConfig, OptimConfig, Schedule, SearchConfig
from harness.lineage.nodes.local_files import LocalNodes
from harness.lineage.proof.networks import Architecture
from tools.benchmarks.made_search import MadeSearch
from tools.benchmarks.row import Row

GOAL_SECONDS = 60.0

_VERIFY = """
import sys, time
from pathlib import Path
from harness.lineage.store import open_store
from harness.lineage.proof import verify
def kib(what):
    return int(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if what in line))
before = kib("VmRSS")
started = time.perf_counter()
findings = verify(open_store(sys.argv[1], offline=True))
seconds = time.perf_counter() - started
assert not findings.problems, findings.problems
print(seconds, sum(findings.checked.values()), findings.num_bytes, (kib("VmHWM") - before) / 1024)
"""


def rows(quick: bool) -> list[Row]:
    """Make a search with random weights and real pruning, and verify it in a process of its own."""
    num_levels = 1 if quick else 10
    with tempfile.TemporaryDirectory() as directory:
        _make_resnet50(Path(directory), num_levels)
        command = [sys.executable, "-c", _VERIFY, directory]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, checks, num_bytes, mib = (float(word) for word in done.stdout.split())
    note = f"{checks:.0f} checks, {num_bytes / 1e9:.2f} GB hashed, {mib:,.0f} MiB of memory above the imports'"
    return [
        Row(
            name=f"verify a search, ResNet-50, {num_levels} levels, local [s]",
            ours=seconds,
            reference=GOAL_SECONDS,
            ratio=seconds / GOAL_SECONDS,
            goal=f"≤ {GOAL_SECONDS:.0f} s",
            reached=seconds <= GOAL_SECONDS,
            low=seconds / GOAL_SECONDS,
            high=seconds / GOAL_SECONDS,
            note=note,
        )
    ]


def _make_resnet50(place: Path, num_levels: int) -> None:
    config = SearchConfig(
        data=DataConfig("imagenet", directory=place / "none"),
        model=ModelConfig("resnet50"),
        optim=OptimConfig("adam", lr=0.001),
        final=Schedule(120, "cosine"),
        warmup_epochs=20,
        level_epochs=5,
        num_levels=num_levels,
        global_batch_size=256,
    )
    architecture = Architecture("resnet50", num_classes=1000, channels=3, image_size=224, width=None)
    MadeSearch(LocalNodes(place), config, architecture, data_digest="0" * 64).make()
