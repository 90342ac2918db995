"""Masks and signed masks, their comparison, and their use."""

from harness.masks.mask import Mask, SignedMask

__all__ = ["Mask", "SignedMask"]
