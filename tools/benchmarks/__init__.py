"""Define the benchmarks. `tools/bench.py` runs the functions with `quick`, and `sitting.py` those with a World."""
