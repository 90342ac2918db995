"""The parts of `tools/benchmarks/sitting.py`, the one command for a short time on a GPU."""
