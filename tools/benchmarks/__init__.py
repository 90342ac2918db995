"""Define the benchmarks.

`tools/bench.py` runs the functions with a parameter `quick`, and `sitting.py` those with a World.
"""
