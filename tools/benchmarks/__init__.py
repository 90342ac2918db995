"""What `tools/bench.py` measures: one file per room, each with rows(quick) -> list[Row]."""
