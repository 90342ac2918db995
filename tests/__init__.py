"""Tests, and the helpers they import as `tests.<room>.<helper>`."""
