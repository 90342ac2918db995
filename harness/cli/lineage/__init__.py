"""The commands of `tickets lineage`. Each is a dataclass whose fields are its options."""
