"""Nodes of the lineage: records, their files on disk, the graph."""
