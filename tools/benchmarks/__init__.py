"""What `tools/bench.py` measures, one file a row with rows(quick) -> list[Row]; `device` is for sitting.py."""
