"""List, relate, compare, share and verify runs: local ones and those in MLflow.

$ python tools/lineage.py list
$ python tools/lineage.py tree RUN
$ python tools/lineage.py show RUN

RUN is a run ID, a key, or a unique prefix of either. Every command has --json and its own --help.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from harness.cli.errors import clear_errors
from harness.cli.lineage.store_options import StoreOptions
from harness.cli.parser import parse_command
from harness.common.logging import show_messages

_log = logging.getLogger(__name__)


class Command(Protocol):
    """A dataclass whose fields are the options of one command."""

    @property
    def place(self) -> StoreOptions: ...

    def run(self) -> None: ...


# To add a command, write its dataclass in this package and add it here.
_HOMES = {
    "asking": ("list", "show", "tree", "ancestors", "descendants", "path", "diff"),
    "showing": ("page", "ui"),
    "moving": ("sync", "relocate", "export", "bundle", "import"),
    "proving": ("verify", "gc"),
}


class Commands(Mapping[str, Any]):
    """The dataclass of each command. Only the modules of the used ones are imported."""

    def __getitem__(self, name: str) -> Any:
        home = next((home for home, names in _HOMES.items() if name in names), None)
        if home is None:
            raise KeyError(name)
        return getattr(importlib.import_module(f"harness.cli.lineage.{home}"), name.capitalize())

    def __iter__(self) -> Iterator[str]:
        return (name for names in _HOMES.values() for name in names)

    def __len__(self) -> int:
        return sum(map(len, _HOMES.values()))


COMMANDS = Commands()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. Errors print one line and exit with code 1.

    Args:
        arguments: Words to parse. None means those of the process.
    """
    warnings.showwarning = lambda message, *_: _log.warning(str(message))
    with clear_errors():
        command: Command = parse_command(COMMANDS, description=__doc__, arguments=arguments)
        show_messages(command.place.verbosity)
        command.run()
