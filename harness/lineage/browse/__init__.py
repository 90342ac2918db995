"""Questions about the lineage: lists, relatives, differences."""
