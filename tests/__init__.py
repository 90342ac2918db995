"""Contain the tests and their helper modules, imported as `tests.<package>.<helper>`."""
