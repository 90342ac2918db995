"""Implement the commands of tools/lineage.py.

Each command is a dataclass whose fields are its options.
"""
