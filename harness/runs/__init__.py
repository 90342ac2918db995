"""Runs: finished ones, those that are being made, and how a launch ended."""
