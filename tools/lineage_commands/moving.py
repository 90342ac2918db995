"""Commands that move nodes: to MLflow, out to somebody else, and in from there."""

from __future__ import annotations

from dataclasses import dataclass

from harness.lineage.store import DEFAULT_EXPERIMENT
from tools.lineage_commands.place import Place, Where
from tools.lineage_commands.printing import print_json


@dataclass(frozen=True)
class Sync:
    """Deliver every local node that MLflow does not have yet, or not wholly."""

    experiment: str = DEFAULT_EXPERIMENT
    """MLflow experiment to deliver to."""
    place: Where = Place()

    def run(self) -> None:
        delivered = []
        for directory, run_id in self.place.open(self.experiment).sync():
            delivered.append({"directory": str(directory), "run_id": run_id})
            if not self.place.json:
                print(f"{directory.name} → run {run_id}")
        if self.place.json:
            print_json("sync", [], delivered=delivered)
        elif not delivered:
            print("everything was delivered already")
