"""Helpers that every package uses: digests, seeds, files, log messages."""
