"""Download an exported run from the Hugging Face Hub, check all its digests, and import it with its lineage.

$ python tools/pull.py USER/NAME
$ python tools/pull.py USER/NAME@REVISION --offline

All commands then accept the imported runs, also by their original run IDs. No file is executed. With --offline, the
runs stay local, and MLflow is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from harness.cli.errors import clear_errors
from harness.cli.lineage.store_options import StoreOptions, Where
from harness.cli.parser import parse_command
from harness.common.logging import show_messages
from harness.lineage.store import DEFAULT_EXPERIMENT


@dataclass(frozen=True)
class Pull:
    """Import an exported run from the Hub."""

    repository: tyro.conf.Positional[str]
    """USER/NAME or USER/NAME@REVISION. A revision is a branch, a tag or a commit."""
    weights: bool = True
    """Download the checkpoint of the run, too. Signed mask and lineage do not need it."""
    experiment: str = DEFAULT_EXPERIMENT
    """MLflow experiment that receives the runs."""
    place: Where = StoreOptions()

    def run(self) -> None:
        """Import the runs, deliver them, and print the outcomes."""
        from harness.cli.lineage.moving import deliver_imported
        from harness.cli.lineage.printing import print_json
        from harness.lineage.sharing.hub import pull

        store = self.place.open(self.experiment)
        pulled = pull(store, self.repository, weights=self.weights)
        imported = deliver_imported(store, pulled.imported, self.place)
        if self.place.json:
            print_json("pull", [], imported=imported, key=pulled.key, commit=pulled.commit)
        else:
            print(f"{pulled.repository.repo} at commit {pulled.commit[:12]} is run {pulled.key}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. Errors print one line and exit with code 1."""
    with clear_errors():
        command: Pull = parse_command(Pull, description=__doc__, arguments=arguments)
        show_messages(command.place.verbosity)
        command.run()
