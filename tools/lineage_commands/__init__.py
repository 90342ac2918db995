"""The commands of tools/lineage.py, by what a person wants: ask, move, …; each a dataclass whose fields are options."""
