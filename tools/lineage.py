"""List, relate, compare, share and verify runs (`tickets lineage`)."""

from harness.cli.lineage.main import COMMANDS, main

__all__ = ["COMMANDS", "main"]

if __name__ == "__main__":
    main()
