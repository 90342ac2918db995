"""Checks of an installation: the harness against an independent implementation."""
