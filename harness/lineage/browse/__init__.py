"""Query the lineage: list, find, relate, compare and export runs."""
