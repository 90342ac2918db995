"""The lineage as one HTML page and one picture."""
