"""Pruning methods inside any training loop: SignPruner."""

from harness.pruner.sign_pruner import Level, SignPruner

__all__ = ["Level", "SignPruner"]
