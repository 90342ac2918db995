"""Benchmarks of `tools/bench.py` (functions that take `quick`) and of `sitting.py` (functions that take a World)."""
